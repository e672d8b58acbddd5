//! The table: one column per run.

use std::fmt::Write;
use std::time::Duration;

pub struct Column {
    pub model: String,
    pub mode: &'static str,
    pub topology: String,
    pub tokens: u64,
    pub bytes: u64,
    pub runs: u64,
    pub spans: u64,
    pub transport: String,
    pub compile: Duration,
    pub first: Duration,
    pub steady: Duration,
    pub memcpy: Duration,
    pub sockets: Duration,
    /// Bytes compared.
    pub verdict: Result<u64, String>,
}

fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(c);
    }
    out
}

impl Column {
    fn speed(&self, time: Duration) -> f64 {
        self.bytes as f64 / 1e9 / time.as_secs_f64()
    }

    fn compared(&self, limit: Duration) -> String {
        let ratio = limit.as_secs_f64() / self.steady.as_secs_f64();
        format!("{:.2} GB/s ({:.0} %)", self.speed(limit), 100.0 * ratio)
    }

    fn cells(&self) -> [(&'static str, String); 14] {
        let ms = |t: Duration| format!("{:.1} ms", t.as_secs_f64() * 1e3);
        [
            ("model", self.model.clone()),
            ("mode", self.mode.into()),
            ("prefill -> decode", self.topology.clone()),
            ("tokens", grouped(self.tokens)),
            ("bytes moved", format!("{:.1} MB", self.bytes as f64 / 1e6)),
            ("runs -> spans", format!("{} -> {}", grouped(self.runs), grouped(self.spans))),
            ("plans, all ranks", ms(self.compile)),
            ("transport in effect", self.transport.clone()),
            ("first transfer", format!("{}, {:.2} GB/s", ms(self.first), self.speed(self.first))),
            ("steady transfer", format!("{}, {:.2} GB/s", ms(self.steady), self.speed(self.steady))),
            ("memcpy, same spans", self.compared(self.memcpy)),
            ("sockets, same spans", self.compared(self.sockets)),
            ("bytes checked", self.verdict.as_ref().map_or("-".into(), |n| format!("{:.1} MB", *n as f64 / 1e6))),
            ("verdict", if self.verdict.is_ok() { "every byte right".into() } else { "WRONG".into() }),
        ]
    }
}

/// Rows of names and values; percentages are kvlink's steady speed relative to that limit.
pub fn render(columns: &[Column]) -> String {
    let cells: Vec<_> = columns.iter().map(Column::cells).collect();
    let Some(names) = cells.first() else { return String::new() };
    let name_width = names.iter().map(|(n, _)| n.len()).max().unwrap_or(0);
    let mut out = String::from("\n");
    for (row, (name, _)) in names.iter().enumerate() {
        let _ = write!(out, "{name:<name_width$}");
        for column in &cells {
            let width = column.iter().map(|(_, v)| v.len()).max().unwrap_or(0);
            let _ = write!(out, "   {:<width$}", column[row].1);
        }
        while out.ends_with(' ') {
            out.pop();
        }
        out.push('\n');
        if row == 0 {
            let widths = cells.iter().map(|c| 3 + c.iter().map(|(_, v)| v.len()).max().unwrap_or(0));
            out.push_str(&"-".repeat(name_width + widths.sum::<usize>()));
            out.push('\n');
        }
    }
    let _ = writeln!(out, "\npercentages: the steady transfer's speed relative to that limit");
    out
}
