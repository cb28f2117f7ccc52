//! Formats of the control messages on Ethernet, for the gateway and for hosts.

pub(super) mod arp;
pub(super) mod dhcp;
pub(super) mod groups;
pub(super) mod ip;
pub(super) mod ndp;
