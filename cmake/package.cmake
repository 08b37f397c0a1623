# `cmake --install`, and a Debian package by `cpack -G DEB` in the build folder.
if(NOT TARGET duramen)
  return()
endif()
include(GNUInstallDirs)
set(packaging ${PROJECT_SOURCE_DIR}/packaging)

install(TARGETS duramen RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(FILES README.md CHANGELOG.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(FILES docs/ARCHITECTURE.md docs/OPERATIONS.md docs/LIMITS.md DESTINATION ${CMAKE_INSTALL_DOCDIR})
install(FILES scripts/completion/duramen.bash
  DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME duramen)
install(FILES scripts/completion/_duramen DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/vendor-completions)
install(FILES scripts/completion/duramen.fish DESTINATION ${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d)
install(FILES ${packaging}/duramen.service DESTINATION lib/systemd/system)
install(FILES ${packaging}/duramen.sysusers DESTINATION lib/sysusers.d RENAME duramen.conf)
# only where the service that reads it goes, not into a home folder's prefix
install(CODE "if(CMAKE_INSTALL_PREFIX STREQUAL \"/usr\")
  file(INSTALL DESTINATION /etc/duramen TYPE FILE FILES \"${packaging}/duramen.conf\")
endif()")

find_program(SCDOC scdoc)
if(SCDOC)
  set(manual ${PROJECT_BINARY_DIR}/duramen.1.gz)
  add_custom_command(OUTPUT ${manual}
    COMMAND sh -c "'${SCDOC}' < '${PROJECT_SOURCE_DIR}/docs/man/duramen.1.scd' | gzip -9n > '${manual}'"
    DEPENDS ${PROJECT_SOURCE_DIR}/docs/man/duramen.1.scd VERBATIM)
  add_custom_target(manual ALL DEPENDS ${manual})
  install(FILES ${manual} DESTINATION ${CMAKE_INSTALL_MANDIR}/man1)
endif()
set(changelog ${PROJECT_BINARY_DIR}/changelog.gz)
add_custom_command(OUTPUT ${changelog} COMMAND sh -c "gzip -9nc '${packaging}/changelog' > '${changelog}'"
  DEPENDS ${packaging}/changelog VERBATIM)
add_custom_target(changelog ALL DEPENDS ${changelog})
install(FILES ${changelog} ${packaging}/copyright DESTINATION ${CMAKE_INSTALL_DOCDIR})

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_SET_DESTDIR ON)
set(CPACK_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_PACKAGE_NAME duramen)
set(CPACK_PACKAGE_CONTACT "The Duramen authors <maintainers@duramen.invalid>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "durable key-value store for Redis clients")
set(CPACK_DEBIAN_PACKAGE_DESCRIPTION
"Duramen speaks the Redis protocol and HTTP, and acknowledges a write when it
is on disk. Data is kept in LMDB, new writes in memory, and a write-ahead log
is before both, so that many clients share one disk write.")
set(CPACK_DEBIAN_PACKAGE_SECTION database)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS redis-tools)
set(CPACK_DEBIAN_PACKAGE_CONTROL_EXTRA ${packaging}/postinst ${packaging}/prerm ${packaging}/postrm ${packaging}/conffiles)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_INSTALL_DEFAULT_DIRECTORY_PERMISSIONS OWNER_READ OWNER_WRITE OWNER_EXECUTE GROUP_READ GROUP_EXECUTE WORLD_READ WORLD_EXECUTE)
include(CPack)
