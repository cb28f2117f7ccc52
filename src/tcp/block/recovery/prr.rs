//! Proportional rate reduction (RFC 6937bis): during recovery data is sent in proportion to delivered
//! data, so that cwnd shrinks to ssthresh. Pure.

/// See the module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Prr {
    /// prr_delivered.
    prr_delivered: u64,
    /// prr_out.
    prr_out: u64,
    /// RecoverFS.
    recover_fs: u64,
}

impl Prr {
    /// A recovery begins with this many bytes in flight.
    pub(crate) fn new(flight: u64) -> Prr {
        Prr {
            prr_delivered: 0,
            prr_out: 0,
            recover_fs: flight.max(1),
        }
    }

    /// Records sent bytes.
    pub(crate) fn sent(&mut self, bytes: u64) {
        self.prr_out += bytes;
    }

    /// cwnd after an ACK that has delivered this many bytes. `pipe` is the amount in flight; `safe`: it
    /// advances SND.UNA without further losses (SafeACK).
    pub(crate) fn window(
        &mut self,
        delivered: u64,
        pipe: u64,
        (ssthresh, mss, safe): (u64, u64, bool),
    ) -> u64 {
        self.prr_delivered += delivered;
        let more = if pipe > ssthresh {
            let due = u128::from(self.prr_delivered) * u128::from(ssthresh);
            let due = u64::try_from(due.div_ceil(u128::from(self.recover_fs))).unwrap_or(u64::MAX);
            due.saturating_sub(self.prr_out)
        } else {
            let conserve = self
                .prr_delivered
                .saturating_sub(self.prr_out)
                .max(delivered);
            let more = conserve + if safe { mss } else { 0 };
            more.min(ssthresh - pipe)
        };
        // The first retransmission is always allowed.
        let least = if self.prr_out == 0 { mss } else { 0 };
        pipe + more.max(least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6937bis: half of what is delivered is sent, from the first ACK on.
    #[test]
    fn the_window_shrinks_in_proportion() {
        let mss = 100;
        let mut prr = Prr::new(2000);
        let mut pipe: u64 = 1900;
        let mut sent = 0;
        for _ in 0..19 {
            pipe -= 100;
            let window = prr.window(100, pipe, (1000, mss, false));
            while window >= pipe + mss {
                prr.sent(mss);
                pipe += mss;
                sent += mss;
            }
        }
        assert_eq!((sent, pipe), (1000, 1000));
    }

    #[test]
    fn after_many_losses_the_window_grows_to_its_target() {
        let mss = 100;
        let mut prr = Prr::new(2000);
        prr.sent(mss);
        let mut pipe: u64 = 400;
        for _ in 0..20 {
            pipe -= 100;
            let window = prr.window(100, pipe, (1000, mss, true));
            assert!(window <= pipe + 200, "slow start at most");
            while window >= pipe + mss {
                prr.sent(mss);
                pipe += mss;
            }
        }
        assert_eq!(pipe, 1000);
    }
}
