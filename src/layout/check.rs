//! Compares what both sides say about a tensor.

use super::assign::Held;
use super::shape::{GroupKind, Matching};
use super::verdict::Findings;

/// Every way in which the two definitions of one tensor differ.
pub(crate) fn check_tensor(subject: &str, dst: Held<'_>, src: Held<'_>, findings: &mut Findings) {
    let (d, s) = (dst.tensor, src.tensor);
    findings.differ(subject, "dtype", d.element.to_string(), s.element.to_string());
    findings.differ(subject, "number of axes", d.axes.len(), s.axes.len());
    for (a, b) in d.axes.iter().zip(&s.axes) {
        findings.differ(subject, "axis name", a.name.as_str(), b.name.as_str());
        if a.matching == Matching::Exact || b.matching == Matching::Exact {
            findings.differ(subject, &format!("axis {} extent", a.name), a.extent, b.extent);
        }
    }
    let slots = |k: GroupKind| if k == GroupKind::Slots { "state slots" } else { "tokens" };
    findings.differ(subject, "indexed by", slots(dst.group.kind), slots(src.group.kind));
    let reach = |h: Held<'_>| format!("{:?}", h.group.reach);
    findings.differ(subject, "reach", reach(dst), reach(src));
}
