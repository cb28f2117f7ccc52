//! OpenBSD's cases (`regress/sys/kern/sosplice`).

use super::Case;

pub(super) const CASES: &[Case] = &[];
