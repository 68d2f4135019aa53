//! The labels of metrics and their values. Enums, so that no metric has more series than can be read here.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, missing_docs, reason = "the names are the label's values")]
pub enum Kind {
    manifest,
    blob,
    list,
    other,
}

/// How it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, missing_docs, reason = "the names are the label's values")]
pub enum Outcome {
    hit,
    miss,
    stale,
    denied,
    error,
}

/// A part of a request to upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, missing_docs, reason = "the names are the label's values")]
pub enum Phase {
    resolve,
    connect,
    header,
    body,
}

/// The part that a host plays for upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, missing_docs, reason = "the names are the label's values")]
pub enum HostRole {
    registry,
    token,
    redirect,
}

/// How much of a pinned image is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, missing_docs, reason = "the names are the label's values")]
pub enum PinState {
    complete,
    partial,
    missing,
}

/// Where content came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, missing_docs, reason = "the names are the label's values")]
pub enum Source {
    upstream,
    alternate,
    peer,
    disk,
}

/// Who may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, missing_docs, reason = "the names are the label's values")]
pub enum Listener {
    plain,
    tls,
    admin,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Answered {
    pub(super) kind: Kind,
    pub(super) result: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Result {
    pub(super) result: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct InPhase {
    pub(super) phase: Phase,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OfHost {
    pub(super) host: HostRole,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct At {
    pub(super) listener: Listener,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct From {
    pub(super) source: Source,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct InState {
    pub(super) state: PinState,
}
