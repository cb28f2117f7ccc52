//! The settings of a stack.

use crate::congestion::Congestion;
use crate::error::Flavor;
use crate::stack::accept::{admission, syn_marks};
use crate::stack::ephemeral_ports;
use crate::tcp::limits::Limits;
use std::sync::Arc;
use std::time::Duration;

/// Longer times are cut to this: practically infinite, and can be added to any time without overflow.
pub(super) const LONGEST: Duration = Duration::from_secs(10 * 365 * 86_400);
/// FreeBSD's `net.inet.tcp.delacktime`, Linux' `TCP_DELACK_MIN`.
const ACK_DELAY: Duration = Duration::from_millis(40);
/// 4 GiB: the maximum of two thousand connections of the default sizes, and enough for hundreds of
/// thousands that carry messages.
#[cfg(target_pointer_width = "64")]
const BUFFER_MEMORY: usize = 4 << 30;
#[cfg(not(target_pointer_width = "64"))]
const BUFFER_MEMORY: usize = 1 << 30;

#[derive(Debug, Clone)]
pub(super) struct Config {
    pub(super) rcv_buffer: usize,
    pub(super) snd_buffer: usize,
    pub(super) nagle: bool,
    pub(super) ack_delay: Option<Duration>,
    pub(super) congestion: Congestion,
    pub(super) ecn: bool,
    /// Largest segment announced and sent.
    pub(super) mss: Option<usize>,
    pub(super) limits: Arc<Limits>,
    pub(super) flavor: Flavor,
    pub(super) time_wait: Duration,
    pub(super) time_wait_limit: usize,
    /// First and last ephemeral port.
    pub(super) ports: (u16, u16),
    pub(super) syn_cookies: bool,
    /// Cookies in a second for SYNs that are not repeated.
    pub(super) max_syn_cookies: Option<u32>,
    pub(super) max_connections: usize,
    /// Limit of the connections that one peer has opened.
    pub(super) max_connections_per_peer: Option<usize>,
    pub(super) max_half_open: usize,
    pub(super) max_buffer_memory: usize,
    /// How long the driver's thread polls before it sleeps.
    pub(super) busy_poll: Duration,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            rcv_buffer: crate::sockbuf::DEFAULT_HIWAT,
            snd_buffer: crate::sockbuf::DEFAULT_HIWAT,
            nagle: false,
            ack_delay: Some(ACK_DELAY),
            congestion: Congestion::default(),
            ecn: false,
            mss: None,
            limits: Arc::default(),
            flavor: Flavor::default(),
            time_wait: Duration::from_secs(60),
            time_wait_limit: 65_536,
            ports: (
                *ephemeral_ports::EPHEMERAL.start(),
                *ephemeral_ports::EPHEMERAL.end(),
            ),
            syn_cookies: true,
            max_syn_cookies: Some(syn_marks::MAX_COOKIES),
            max_connections: admission::MAX_CONNECTIONS,
            max_connections_per_peer: None,
            max_half_open: admission::MAX_HALF_OPEN,
            max_buffer_memory: BUFFER_MEMORY,
            busy_poll: Duration::ZERO,
        }
    }
}
