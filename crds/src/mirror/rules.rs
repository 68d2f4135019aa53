//! CEL rules that several fields share: addresses and names of objects. Knows no field.

use kube::core::Rule;

/// Labels of letters, digits and hyphens, joined by dots.
const HOST: &str = "[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?([.][A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*";
/// Four numbers up to 255.
const IPV4: &str = "((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])[.]){3}(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])";
/// What no port is: 0, and all above 65535.
const NO_PORT: &str =
    ":(0*|0*6553[6-9]|0*655[4-9][0-9]|0*65[6-9][0-9]{2}|0*6[6-9][0-9]{3}|0*[7-9][0-9]{4}|0*[1-9][0-9]{5,})/?$";
const END: &str = "(:[0-9]*)?/?$";

/// A host with an optional port.
pub(super) fn host(message: &str) -> Rule {
    Rule::new(format!("self.contains('/') || self.matches('^{HOST}(:[0-9]+)?$')")).message(message)
}

/// A scheme and a host with an optional port.
pub(super) fn bare_url(message: &str) -> Rule {
    Rule::new(format!("self.matches('^https?://{HOST}(:[0-9]+)?/?$')")).message(message)
}

/// Of a host or a URL: a port that exists.
pub(super) fn port() -> Rule {
    Rule::new(format!("!self.matches('{NO_PORT}')")).message("must have a port from 1 to 65535, or none")
}

/// Of a host or a URL: what ends in a number is an IPv4 address to all programs that read it.
pub(super) fn number() -> Rule {
    Rule::new(format!("!self.matches('(^|[./])[0-9]+{END}') || self.matches('(^|//){IPV4}{END}')"))
        .message("must have an IPv4 address such as 10.1.2.3, or a name whose last part is no number")
}

/// The name of an object of another kind.
pub(super) fn object_name(message: &str) -> Rule {
    Rule::new("self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?([.][a-z0-9]([a-z0-9-]*[a-z0-9])?)*$')").message(message)
}
