//! The same tests over `std::net` on loopback and over this crate's sockets: compatibility for programs
//! written for one of them.
//!
//! What differs, and why (the system is Linux; each row is tested, see `N::either`):
//!
//! | | `std::net` on Linux | here | why |
//! |---|---|---|---|
//! | `set_nodelay` at first | off | on | batches of segments coalesce acknowledgements; 10 ms for each write-write-read otherwise |
//! | `shutdown(Read)` with bytes unread | they, and later ones, can still be read | dropped | BSD drops them |
//! | `shutdown` of an ended connection | `NotConnected` | nothing to do, `Ok` | a late close is no mistake |
//! | `peer_addr` of an ended connection | `NotConnected` | the address | it is a field, and cannot fail |
//! | a read of length 0 without data | waits | `Ok(0)` | POSIX's `read`, BSD |
//! | first error of a write after the peer's end and reset | `BrokenPipe` | `ConnectionReset` | BSD; a reset is a reset |
//! | connecting to port 0 | `ConnectionRefused` | `InvalidInput` | no listener can have it |
//! | close with `set_linger(Some(d))` | may block for `d` | never blocks; what is left after `d` is reset | drop must not wait (virtual time: `lingering_data_is_reset_after_its_time`) |
//! | `take_error` | an `io::Error` | a typed `SoError` | it can be matched; `into()` makes the other |
//! | functions that cannot fail | `io::Result` | the value | no error to handle |
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "stdnet/errors.rs"]
mod errors;
#[path = "stdnet/nets.rs"]
mod nets;
#[path = "stdnet/streams.rs"]
mod streams;

/// Instantiates each test over both.
macro_rules! both {
    ($($module:ident: $($test:ident)+;)+) => {
        mod over_std {
            $($(#[test] fn $test() { super::$module::$test(&super::nets::System); })+)+
        }
        mod over_ours {
            $($(#[test] fn $test() { super::$module::$test(&super::nets::Ours::new()); })+)+
        }
    };
}

both! {
    streams:
        addresses_are_those_of_the_other_side
        several_addresses_are_tried_in_turn
        bytes_arrive_and_end
        vectors_are_gathered_and_scattered
        peek_leaves_the_bytes
        nothing_to_read_into_reads_nothing
        a_clone_is_the_same_socket
        listeners_are_cloned
        incoming_connections_come_in_turn
        half_closed_both_ways
        shutdown_in_all_combinations
        shutdown_read_wakes_the_reader
        shutdown_read_and_unread_bytes
        options_are_kept;
    errors:
        timeouts
        nothing_waits_for_zero
        nonblocking
        refused
        a_black_hole
        addresses_in_use
        linger_zero_resets_the_peer
        unread_bytes_reset_the_peer
        a_write_after_a_reset
        a_reset_wakes_the_writer
        take_error_takes_it
        a_write_after_the_end
        a_connection_that_is_over
        port_zero_is_invalid;
}
