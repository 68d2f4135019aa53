//! The kinds of work, each a function from the running upstream to a table.

pub(super) mod hits;
pub(super) mod images;
pub(super) mod misses;
pub(super) mod readers;
pub(super) mod start;
