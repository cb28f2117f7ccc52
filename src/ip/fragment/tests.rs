use super::*;
use crate::cases::cases;
use crate::clock::{Clock, SystemClock};
use crate::ip::reassembly::{Added, Reassembler};
use crate::ip::samples::{addresses, sum_header};
use crate::ip::{self, IPV4_HEADER, Malformed};
use crate::link::Frame;
use proptest::prelude::*;

const UDP: u8 = 17;

fn headers(v6: bool, len: usize) -> (Vec<u8>, usize) {
    let ip_header_len = if v6 { IPV6_HEADER } else { IPV4_HEADER };
    let mut headers = vec![0; ip_header_len];
    header::write(&mut headers, addresses(v6), UDP, 8 + len);
    sum_header(&mut headers);
    headers.extend([1, 2, 3, 4, 5, 6, 7, 8]);
    (headers, ip_header_len)
}

proptest! {
    #![proptest_config(cases(200, 200))]

    /// Any length, any MTU, any pieces, a link that is full at any time: what a receiver puts together is what
    /// was sent, and each fragment is as RFC 791 3.2 and RFC 8200 4.5 say.
    #[test]
    fn what_is_cut_is_put_together(
        v6: bool,
        len in 0usize..65_000,
        mtu in 576usize..9000,
        piece in 1usize..20_000,
        full_after in 1usize..20,
    ) {
        let bytes: Vec<u8> = (0..len as u64).map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]).collect();
        let payload: Vec<Buf> = bytes.chunks(piece).map(Buf::copy_of).collect();
        let (headers, ip_header_len) = headers(v6, len);
        let packet = Packet::new(&headers, &payload, ip_header_len);
        prop_assume!(packet.len() > mtu);
        let (mut progress, mut sent) = (Progress::new(0xabcd_1234), Vec::new());
        for _ in 0..1000 {
            let mut room = full_after;
            let done = fragment(&packet, mtu, &mut progress, |part| {
                if room == 0 {
                    return Err(());
                }
                room -= 1;
                sent.push(part.to_vec());
                Ok(())
            });
            if done.is_ok() {
                break;
            }
        }
        let (now, mut reassembler) = (SystemClock.now(), Reassembler::default());
        let (last, before) = sent.split_last().unwrap();
        let mut give = |part: &[u8]| {
            let mut frame = Frame::new(part);
            assert_eq!(ip::parse(&mut frame).unwrap_err(), Malformed::Fragment);
            let (packet, fragment) = ip::packet::part(&frame).unwrap();
            assert_eq!(packet.total_len, part.len());
            let id = if v6 { 0xabcd_1234 } else { 0x1234 };
            assert_eq!((fragment.identification, fragment.next_header), (id, UDP));
            reassembler.add(frame, now)
        };
        for part in before {
            prop_assert!(part.len() <= mtu && part.len() + 8 > mtu, "as large as may be");
            prop_assert!(matches!(give(part), Added::Waits(_)));
        }
        prop_assert!(last.len() <= mtu);
        let Added::Whole(whole) = give(last) else {
            panic!("not whole");
        };
        let whole = whole.to_vec();
        prop_assert_eq!(&whole[ip_header_len..], &packet.to_vec()[ip_header_len..]);
    }
}

#[test]
#[should_panic(expected = "no room for the headers of a fragment")]
fn an_mtu_that_is_too_small_is_a_mistake() {
    let (headers, ip_header_len) = headers(true, 100);
    let payload = [Buf::copy_of(&[0; 100])];
    let packet = Packet::new(&headers, &payload, ip_header_len);
    let sent = fragment(&packet, 55, &mut Progress::new(1), |_| Ok::<_, ()>(()));
    sent.unwrap();
}
