//! The structured answer to "can these two layouts be copied into one another, and if not, why?".

use std::fmt;

/// One incompatibility: what, and both values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The thing that differs: "layer 3 state", "group 2", "model".
    pub subject: String,
    /// Its field or axis: "dtype", "axis head extent", "coverage".
    pub field: String,
    /// Value on the destination's side.
    pub local: String,
    /// Value on the source's side.
    pub remote: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} destination {}, source {}", self.subject, self.field, self.local, self.remote)
    }
}

/// Every incompatibility of a pair of instances; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// All findings, in the order of layers.
    pub findings: Vec<Finding>,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, finding) in self.findings.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{finding}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Verdict {}

/// Collects findings; equal findings of neighbouring layers are told once.
#[derive(Default)]
pub(crate) struct Findings(Vec<Finding>);

impl Findings {
    pub fn add(
        &mut self,
        subject: impl Into<String>,
        field: impl Into<String>,
        local: impl fmt::Display,
        remote: impl fmt::Display,
    ) {
        let finding = Finding {
            subject: subject.into(),
            field: field.into(),
            local: local.to_string(),
            remote: remote.to_string(),
        };
        if !self.0.contains(&finding) {
            self.0.push(finding);
        }
    }

    /// Adds a finding when the two values differ.
    pub fn differ<T: PartialEq + fmt::Display>(&mut self, subject: &str, field: &str, local: T, remote: T) {
        if local != remote {
            self.add(subject, field, local, remote);
        }
    }

    pub fn into_result(self) -> Result<(), Verdict> {
        if self.0.is_empty() { Ok(()) } else { Err(Verdict { findings: self.0 }) }
    }
}
