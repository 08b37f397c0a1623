#include "server/glob.h"

/* The matcher walks pattern and text once and remembers only the last star it has passed. When a byte
 * does not match, that star takes one byte more and everything behind it is tried again. Earlier
 * stars need no second thought: whatever they could give away, the last one can take. So the worst
 * case is |pattern| x |text|, where a recursive matcher with k stars needs |text|^k. */

static uint8_t folded(uint8_t byte, bool fold_case)
{
    return fold_case && byte >= 'A' && byte <= 'Z' ? (uint8_t)(byte | 0x20) : byte;
}

/* Matches one byte against the class that starts behind '[' at *position; moves *position behind the class.
 * *steps counts the bytes of the pattern looked at. */
static bool class_match(
    struct bytes pattern, size_t *position, uint8_t byte, bool fold_case, uint32_t *steps)
{
    size_t at = *position;
    bool negated = at < pattern.size && pattern.at[at] == '^';
    bool found = false;
    if (negated) at++;
    while (at < pattern.size && pattern.at[at] != ']') {
        (*steps)++;
        if (pattern.at[at] == '\\' && at + 1 < pattern.size) {
            at++;
            if (folded(pattern.at[at], fold_case) == byte) found = true;
            at++;
        } else if (at + 2 < pattern.size && pattern.at[at + 1] == '-') {
            uint8_t low = folded(pattern.at[at], fold_case);
            uint8_t high = folded(pattern.at[at + 2], fold_case);
            if (low > high) {
                uint8_t other = low;
                low = high;
                high = other;
            }
            if (byte >= low && byte <= high) found = true;
            at += 3;
        } else {
            if (folded(pattern.at[at], fold_case) == byte) found = true;
            at++;
        }
    }
    *position = at < pattern.size ? at + 1 : at;
    return found != negated;
}

bool glob_match(struct bytes pattern, struct bytes text, bool fold_case)
{
    size_t in_pattern = 0, in_text = 0;
    size_t after_star = 0, star_text = 0;
    bool star = false;
    uint32_t steps = 0;

    while (in_text < text.size) {
        if (++steps > GLOB_STEPS_MAX) return false;
        bool matched = false;
        if (in_pattern < pattern.size) {
            uint8_t byte = folded(text.at[in_text], fold_case);
            uint8_t token = pattern.at[in_pattern];
            if (token == '*') {
                star = true;
                after_star = ++in_pattern;
                star_text = in_text;
                if (after_star == pattern.size) return true;
                continue;
            }
            if (token == '?') {
                in_pattern++;
                matched = true;
            } else if (token == '[') {
                in_pattern++;
                matched = class_match(pattern, &in_pattern, byte, fold_case, &steps);
            } else {
                if (token == '\\' && in_pattern + 1 < pattern.size) in_pattern++;
                matched = folded(pattern.at[in_pattern], fold_case) == byte;
                in_pattern++;
            }
        }
        if (matched) {
            in_text++;
        } else {
            if (!star) return false;
            in_pattern = after_star;
            in_text = ++star_text;
        }
    }
    while (in_pattern < pattern.size && pattern.at[in_pattern] == '*')
        in_pattern++;
    return in_pattern == pattern.size;
}
