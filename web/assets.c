/* The assembler reads the files in: no generator, no copy of a copy, and the bytes land in .rodata. */

#include "web/assets.h"

#include "base/hash.h"

#define EMBED(name, file)                                                                          \
    __asm__(".pushsection .rodata\n"                                                               \
            ".global " #name "_begin\n" #name "_begin:\n"                                          \
            ".incbin \"" WEB_FOLDER "/" file "\"\n"                                                \
            ".global " #name "_end\n" #name "_end:\n"                                              \
            ".byte 0\n"                                                                            \
            ".popsection\n");                                                                      \
    extern const uint8_t name##_begin[], name##_end[]

EMBED(web_index, "index.html");
EMBED(web_script, "dashboard.js");
EMBED(web_style, "dashboard.css");
EMBED(web_icon, "favicon.svg");

bool web_asset_find(struct bytes path, struct web_asset *asset_out)
{
    static const struct {
        const char *path, *type;
        const uint8_t *begin, *end;
    } assets[] = {
        {"/", "text/html; charset=utf-8", web_index_begin, web_index_end},
        {"/dashboard.js", "text/javascript; charset=utf-8", web_script_begin, web_script_end},
        {"/dashboard.css", "text/css; charset=utf-8", web_style_begin, web_style_end},
        {"/favicon.svg", "image/svg+xml", web_icon_begin, web_icon_end},
    };
    for (size_t i = 0; i < sizeof assets / sizeof assets[0]; i++) {
        if (!bytes_equal(path, bytes_of_text(assets[i].path))) continue;
        struct bytes content = bytes_of(assets[i].begin, (size_t)(assets[i].end - assets[i].begin));
        *asset_out = (struct web_asset){
            .type = assets[i].type, .content = content, .version = hash64(0, content) | 1};
        return true;
    }
    return false;
}
