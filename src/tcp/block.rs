//! The control block of one TCP connection: positions without payload.
//!
//! It keeps sequence numbers, windows and times; the bytes stay in the socket's buffers, and the
//! format on the wire is elsewhere. [`conn_state`](super::conn_state) runs connections over it.
//!
//! | file | contents |
//! |---|---|
//! | `tcb` | the control block, made of the others; its interface |
//! | `seq`, `segment`, `range_set`, `stamp` | positions, fields of a segment, sets of ranges, our timestamps |
//! | `state` | the state machine, and its table as text |
//! | `receiver`, `auto_tune`, `delayed_ack` | acceptance, window, acknowledgements |
//! | `sender`, `path_mtu`, `pace` | new data, segment size, pacing |
//! | `recovery` | transmit record, loss detection, timeouts |
//! | `congestion`, `ecn` | the congestion window; marks of routers |
//! | `time`, `timers`, `watch` | time; timers; limits and keep-alive |
//! | `time_wait` | the record in TIME-WAIT |
//! | `packets`, `sim` | tests: segment by segment, and a simulated path with a monitor on the wire |
//!
//! # Standards
//!
//! The tests are those of `packets` and `sim`, and of the files themselves.
//!
//! | standard | subject | test |
//! |---|---|---|
//! | RFC 9293 3.3.2 | states | `the_table_is_as_it_is_written` |
//! | RFC 9293 3.4 | sequence numbers wrap | `a_number_is_the_nearest_position` |
//! | RFC 9293 3.5, 3.10.7.2, 3.10.7.3 | handshakes, also simultaneous ones | `three_segments`, `a_simultaneous_open_with_a_syn_ack_or_an_ack`, `a_syn_ack_may_carry_data_and_the_end` |
//! | RFC 9293 3.5.2 | half-open connections | `a_stale_acknowledgement_is_reset_and_the_syn_retransmitted` |
//! | RFC 9293 3.6, 3.10.4 | closing | `the_fin_follows_the_last_byte_also_when_the_peer_closed_first`, `closed_by_us_first`, `closed_by_both_at_once`, `a_close_in_syn_sent_sends_nothing` |
//! | RFC 9293 3.10.5 | abort | `an_abort_is_reported` |
//! | RFC 9293 3.10.7.4 | acceptance, trimming | `segments_outside_the_window_are_answered_and_not_kept`, `nothing_without_an_acknowledgement` |
//! | RFC 9293 3.7.1, 6691 | MSS | `the_mss_of_a_peer`, `cut_packets_have_room_for_blocks_too`, `a_full_segment_with_blocks_is_full_for_the_path` |
//! | RFC 9293 3.7.4 | Nagle, in Minshall's variant | `small_writes_join_while_a_small_one_is_in_flight` |
//! | RFC 9293 3.8.3, 3.8.4 | user timeout, keep-alive | `unacknowledged_data_times_out`, `a_dead_peer_is_probed_and_then_timed_out` |
//! | RFC 9293 3.8.6.1 | zero-window probes | `a_closed_window_is_probed_after_an_rto`, `a_window_that_closes_on_waiting_data_is_probed_once_after_an_rto`, `a_probe_that_is_taken_counts` |
//! | RFC 9293 3.8.6.2 | no silly windows, on both sides | `no_silly_segments`, `a_window_closes_and_opens_in_worthwhile_steps` |
//! | RFC 9293 3.8.6.3, 5681 4.2 | delayed acknowledgements | `every_second_segment_is_acknowledged_or_after_40_ms` |
//! | RFC 4987 3.6 | a connection whose SYN was answered with a cookie (`stack::accept::syn_cookie`) | `a_peer_that_acknowledges_a_cookie_is_established_at_once` |
//! | RFC 1337, 6191, 9293 3.10.7.4 | TIME-WAIT | `rules_of_rfc_9293_and_1337`, `a_newer_timestamp_makes_room_rfc_6191` |
//! | RFC 5961 3, 4, 5, 7 | resets, SYNs and data of an attacker | `only_the_next_sequence_number_resets`, `a_syn_is_challenged`, `an_acknowledgement_of_unsent_data_is_challenged` |
//! | RFC 7323 2 | window scale | `windows_are_scaled_but_for_those_of_a_syn` |
//! | RFC 7323 3, 4 | timestamps | `options_offered_by_both_are_negotiated`, `a_spurious_timeout_is_undone` |
//! | RFC 7323 5 | PAWS, except for data that fills a hole | `segments_older_than_ts_recent_are_dropped`, `data_that_fills_a_hole_may_be_older` |
//! | RFC 2018 | SACK, both sides | `out_of_order_data_is_acknowledged_at_once_the_latest_first`, `three_blocks_beside_timestamps`, `data_carries_blocks_too_and_makes_room_for_them`, `data_that_a_peer_discards_is_retransmitted` |
//! | RFC 2883, 3708 | D-SACK, sent and understood | `duplicates_are_reported_once`, `a_spurious_recovery_is_undone_by_d_sack` |
//! | RFC 8985 6 | RACK | `a_hole_is_filled_once_when_three_segments_are_behind_it`, `a_lost_retransmission_is_sent_again_after_a_round_trip`, `a_delay_below_a_quarter_rtt_is_no_loss` |
//! | RFC 8985 7 | tail loss probe | `a_lost_end_is_found_after_two_round_trips`, `a_lone_segment_waits_for_a_delayed_acknowledgement` |
//! | RFC 6937bis | PRR | `the_window_shrinks_in_proportion` |
//! | RFC 6298 | timeouts; the minimum is 200 ms beyond the round trip | `a_timeout_sends_one_segment_and_doubles`, `rfc_6298_2` |
//! | RFC 3522, 4015 | Eifel | `a_spurious_timeout_is_undone`, `a_spurious_recovery_is_undone_by_timestamps` |
//! | RFC 5682 | F-RTO, with SACK | `a_timeout_is_undone_by_original_transmissions` |
//! | RFC 6582 | NewReno, without SACK | `without_sack_three_duplicates_are_a_loss_and_two_send_something_new` |
//! | RFC 3042 | limited transmit | `without_sack_three_duplicates_are_a_loss_and_two_send_something_new`, `with_sack_two_segments_behind_a_hole_send_something_new_too` |
//! | RFC 5681 3.1, 3465 | slow start, congestion avoidance, in bytes | `a_segment_more_in_each_round_trip_and_half_after_a_loss` |
//! | RFC 9438 | CUBIC | `it_comes_back_to_where_it_was_after_k_seconds`, `with_a_small_window_it_is_as_reno` |
//! | RFC 9406 | HyStart++ | `a_growing_delay_ends_slow_start_after_five_rounds`, `a_delay_that_passes_was_jitter` |
//! | draft-ietf-ccwg-bbr 4.1 | delivery rate samples | `the_rate_is_that_of_the_slower_of_sending_and_acknowledging`, `application_limited_samples_are_marked_until_delivery`, `a_lost_packet_reports_the_losses_since_it_was_sent` |
//! | draft-ietf-ccwg-bbr 5 | BBR, version 3, but for losses without a queue | `each_uses_all_of_a_clean_path`, `bbr_uses_a_path_that_loses_packets_at_random`, `the_queue_of_bbr_is_short_whatever_there_is_room_for`, `two_flows_of_the_same_kind_get_about_the_same`, `losses_without_a_queue_are_no_sign`, `bbr_looks_for_the_shortest_round_trip_every_five_seconds`, `bbr_follows_a_path_that_gets_slower_and_faster`, `bbr_leaves_room_in_a_shallow_queue` |
//! | RFC 3168 5 | marks in the IP header, both families | `a_mark_is_seen_where_a_router_sets_it` |
//! | RFC 3168 6.1.1 | ECN negotiation | `a_syn_with_both_flags_is_answered_with_one`, `a_syn_ack_with_one_flag_agrees`, `a_syn_that_is_not_answered_is_sent_again_without`, `a_peer_that_retransmits_without_flags_does_not_agree`, `without_the_option_no_bit_is_set` |
//! | RFC 3168 6.1.2 | a mark reduces the window, once in a round trip | `an_echo_reduces_the_window_once_in_a_round_trip`, `a_loss_is_signalled_too_and_not_counted_twice`, `a_timeout_is_signalled_too`, `marks_take_the_place_of_drops` |
//! | RFC 3168 6.1.3 | marks are echoed | `a_mark_is_echoed_until_the_peer_has_reduced`, `a_mark_of_old_data_does_not_count` |
//! | RFC 3168 6.1.4 to 6.1.6 | which packets may be marked | `only_new_data_may_be_marked`, `probes_of_a_closed_window_may_not_be_marked` |
//! | RFC 6928 | initial window | `the_initial_window_of_rfc_6928`, `the_first_flight_is_ten_segments` |
//! | RFC 2861, 7661 | an unused window | `an_unused_window_does_not_grow_and_decays` |
//! | RFC 1191, 8201, 5927 | path MTU | `data_of_packets_too_big_is_retransmitted_at_once`, `below_the_floor_routers_may_cut`, `only_errors_that_quote_a_segment_in_flight_are_accepted` |
//! | RFC 4821, 8899 | black holes | `full_segments_that_time_out_get_smaller`, `a_black_hole_is_found_out`, `the_former_size_is_tried_again` |
//! | RFC 1191 6.3, 8201 5.3 | the cached path MTU of a new connection (`stack::paths`) | `findings_are_reported`, `a_known_path_mtu_applies_from_the_beginning` |
//! | RFC 5461 | hard and soft errors | `a_hard_error_ends_an_attempt_to_connect_and_nothing_else`, `a_soft_error_that_stays_ends_an_attempt_to_connect` |
//! | all | every byte once and in order, then the end | `whatever_happens_all_arrives`, `whatever_happens_on_the_path` |
//!
//! Bursts are paced where a round trip takes a millisecond or more
//! (`bursts_follow_the_pacing_rate`), and small segments are sent together up to a full one
//! (`a_full_send_buffer_does_not_make_ever_smaller_segments`); the advertised window follows the
//! reader's rate (`the_window_stays_ahead_of_a_sender_that_doubles`).
//!
//! # Not implemented
//!
//! * Urgent data (RFC 9293 3.8.5).
//! * Path MTU search upwards, beyond the former size after a black hole (RFC 4821 7.3).
//! * Header prediction: each segment is processed in full.

pub(crate) mod auto_tune;
pub(crate) mod congestion;
pub(crate) mod delayed_ack;
pub(crate) mod ecn;
pub(crate) mod pace;
#[cfg(test)]
mod packets;
pub(crate) mod path_mtu;
pub(crate) mod range_set;
pub(crate) mod receiver;
pub(crate) mod recovery;
pub(crate) mod segment;
pub(crate) mod sender;
pub(crate) mod seq;
#[cfg(test)]
mod sim;
pub(crate) mod stamp;
pub(crate) mod state;
pub(crate) mod tcb;
pub(crate) mod time;
pub(crate) mod time_wait;
pub(crate) mod timers;
pub(crate) mod watch;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    fn tests(folder: &Path, into: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                tests(&path, into);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let names = text
                .lines()
                .filter_map(|line| line.trim().strip_prefix("fn "));
            into.extend(names.filter_map(|rest| Some(rest.split_once('(')?.0.to_owned())));
        }
    }

    #[test]
    fn each_test_of_the_table_is_there() {
        let mut known = BTreeSet::new();
        let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tcp");
        tests(&src, &mut known);
        let page = include_str!("block.rs");
        let rows = page.lines().filter(|line| {
            let begins = ["//! | RFC", "//! | draft", "//! | all"];
            begins.iter().any(|begin| line.starts_with(begin))
        });
        let mut count = 0;
        for row in rows {
            let named = row.rsplit('|').nth(1).unwrap();
            for name in named.split('`').skip(1).step_by(2) {
                assert!(known.contains(name), "no test {name}");
                count += 1;
            }
        }
        assert!(count > 60, "{count}");
    }
}
