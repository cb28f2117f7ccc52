//! Pings of the kernel, as far as the system allows them: in a network namespace of the test's own, where that is set.

use crate::kinds::{LIMIT, read};
use crate::namespace::{self, Namespace};
use sosplice::kernel::KernelPing;
use std::io::ErrorKind;
use std::process::Command;

/// Set for a process that is to find out which way it has.
const EXPECTED: &str = "SOSPLICE_TEST_PINGS";

/// Groups that may have ping sockets; capabilities; what is to be found.
const WAYS: [(&str, &str, &str); 3] = [
    ("0 0", "+net_raw", "a ping socket"),
    ("1 0", "+net_raw", "a raw socket"),
    ("1 0", "-net_raw", "nothing"),
];

#[test]
fn each_way_to_ping_is_found() {
    if !namespace::available("each_way_to_ping_is_found") {
        return;
    }
    let namespace = Namespace::new("pings");
    for (groups, capability, expected) in WAYS {
        let program = std::env::current_exe().unwrap();
        let script = format!(
            "echo '{groups}' > /proc/sys/net/ipv4/ping_group_range && \
             exec setpriv --bounding-set={capability} {} pings::as_this_process_may --exact --nocapture",
            program.display()
        );
        namespace::run(
            Command::new("ip")
                .args(["netns", "exec", namespace.name(), "sh", "-c", &script])
                .env(EXPECTED, expected),
        );
    }
}

/// Does nothing but in the processes that the test above starts.
#[test]
fn as_this_process_may() {
    let Ok(expected) = std::env::var(EXPECTED) else {
        return;
    };
    for (to, request, reply) in [("127.0.0.1", 8, 0), ("::1", 128, 129)] {
        let ping = KernelPing::connect(to.parse().unwrap());
        if expected == "nothing" {
            let error = ping.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::PermissionDenied);
            let said = error.to_string();
            assert!(said.contains("ping_group_range") && said.contains("CAP_NET_RAW"));
            continue;
        }
        let ping = ping.unwrap();
        assert_eq!(ping.is_raw(), expected == "a raw socket");
        ping.set_read_timeout(Some(LIMIT)).unwrap();
        ping.send(&[request, 0, 0, 0, 1, 2, 3, 4, b'd']).unwrap();
        let answer = read(&ping);
        assert_eq!((answer[0], &answer[6..]), (reply, &[3, 4, b'd'][..]));
    }
}
