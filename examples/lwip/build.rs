//! Compiles the C code for the tests, if lwIP's headers are there (Debian's `liblwip-dev`).

use std::path::Path;

const HEADERS: &str = "/usr/include/lwip";

fn main() {
    println!("cargo:rustc-check-cfg=cfg(lwip)");
    if !Path::new(HEADERS).join("lwip/tcp.h").exists() {
        // A file that is not there: to look again each time. (The headers, once installed, are older than this.)
        println!("cargo:rerun-if-changed=no-lwip");
        return;
    }
    println!("cargo:rerun-if-changed={HEADERS}/lwip/tcp.h");
    let sources = ["lwip_socket.c", "pair.c"];
    for file in sources.iter().chain(&["lwip_socket.h", "pair.h"]) {
        println!("cargo:rerun-if-changed={file}");
    }
    cc::Build::new()
        .files(sources)
        .include(HEADERS)
        .include("../../include")
        .flag("-std=gnu11")
        .warnings_into_errors(true)
        .extra_warnings(true)
        .compile("lwip_pair");
    println!("cargo:rustc-link-lib=lwip");
    println!("cargo:rustc-cfg=lwip");
}
