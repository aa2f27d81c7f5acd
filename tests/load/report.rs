//! The figures, as a table for people and as JSON.

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::Options;
use crate::publish::Outcome;
use crate::system::Snapshot;
use crate::yardstick::Yardstick;

const MIB: f64 = 1024.0 * 1024.0;

/// Everything that was measured.
pub(crate) struct Report<'a> {
    /// What was asked for.
    pub(crate) options: &'a Options,
    /// A bare client against the sink.
    pub(crate) raw: &'a Yardstick,
    /// Puts into etcd by 1 and by 128 clients.
    pub(crate) puts: Option<&'a (Yardstick, Yardstick)>,
    /// Before there were webhooks.
    pub(crate) idle: &'a Snapshot,
    /// Before publishing.
    pub(crate) before: &'a Snapshot,
    /// After the last arrival.
    pub(crate) after: &'a Snapshot,
    /// What became of the events.
    pub(crate) outcome: &'a Outcome,
}

impl Report<'_> {
    /// The figures as JSON; times in microseconds, memory in bytes.
    pub(crate) fn json(&self) -> Value {
        let outcome = self.outcome;
        let thousands = (outcome.arrived as f64 / 1000.0).max(0.001);
        let processes: serde_json::Map<String, Value> = self
            .after
            .processes
            .iter()
            .map(|(&name, &after)| {
                let used = after - self.before.processes.get(name).copied().unwrap_or_default();
                let idle = self.idle.processes.get(name).copied().unwrap_or_default();
                let figures = json!({
                    "cpu_seconds": used.cpu_seconds,
                    "cpu_seconds_per_1000": used.cpu_seconds / thousands,
                    "written_bytes_per_event": used.written_bytes as f64 / (thousands * 1000.0),
                    "resident_bytes": used.resident_bytes,
                    "peak_bytes": used.peak_bytes,
                    "idle_resident_bytes": idle.resident_bytes,
                });
                (name.to_owned(), figures)
            })
            .collect();
        let cpu = processes
            .iter()
            .filter(|(name, _)| *name != "load")
            .filter_map(|(_, figures)| figures["cpu_seconds_per_1000"].as_f64());
        let transactions = self
            .after
            .revision
            .zip(self.before.revision)
            .map(|(after, before)| after - before);
        json!({
            "options": format!("{:?}", self.options),
            "raw_limit": yardstick(self.raw),
            "etcd_put_1_client": self.puts.map(|(one, _)| yardstick(one)),
            "etcd_put_128_clients": self.puts.map(|(_, many)| yardstick(many)),
            "accepted": outcome.accepted,
            "arrived": outcome.arrived,
            "lost": outcome.lost,
            "doubled": outcome.doubled,
            "refused": outcome.refused,
            "all_arrived_in_time": outcome.in_time,
            "requests_at_the_sink": outcome.requests,
            "accepted_per_second": outcome.accepted_per_second,
            "delivered_per_second": outcome.delivered_per_second,
            "delivered_to_raw_limit": outcome.delivered_per_second / self.raw.per_second,
            "ack": latency(&outcome.ack),
            "arrival": latency(&outcome.arrival),
            "cpu_seconds_per_1000": cpu.sum::<f64>(),
            "etcd_transactions": transactions,
            "events_per_etcd_transaction": transactions.map(|count| outcome.accepted as f64 / (count as f64).max(1.0)),
            "etcd_database_bytes": self.after.database_bytes,
            "processes": processes,
        })
    }

    /// Prints the table.
    pub(crate) fn print(&self) {
        let figures = self.json();
        let number = |path: &str| figures.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN);
        let row = |name: &str, text: String| println!("{name:<34} {text}");
        let times = |path: &str| {
            let each = ["p50", "p90", "p99", "p999", "max"];
            let each = each.map(|name| format!("{name} {:.2}", number(&format!("{path}/{name}")) / 1000.0));
            format!("{} ms", each.join("  "))
        };
        println!();
        row(
            "raw limit",
            format!("{:.0}/s  {}", number("/raw_limit/per_second"), times("/raw_limit")),
        );
        for (name, path) in [
            ("etcd put, 1 client", "/etcd_put_1_client"),
            ("etcd put, 128 clients", "/etcd_put_128_clients"),
        ] {
            if figures.pointer(path).is_some_and(Value::is_object) {
                row(
                    name,
                    format!("{:.0}/s  {}", number(&format!("{path}/per_second")), times(path)),
                );
            }
        }
        row(
            "accepted",
            format!(
                "{} events, {:.0}/s, told to wait {} times",
                number("/accepted"),
                number("/accepted_per_second"),
                number("/refused")
            ),
        );
        let share = 100.0 * number("/delivered_to_raw_limit");
        row(
            "delivered",
            format!(
                "{} events, {:.0}/s = {share:.0} % of the raw limit",
                number("/arrived"),
                number("/delivered_per_second")
            ),
        );
        row("lost, doubled", format!("{}, {}", number("/lost"), number("/doubled")));
        row("accept latency", times("/ack"));
        row("arrival latency", times("/arrival"));
        if figures["etcd_transactions"].is_i64() {
            let (count, per) = (number("/etcd_transactions"), number("/events_per_etcd_transaction"));
            row(
                "etcd transactions",
                format!(
                    "{count}, {per:.1} events each, database {:.1} MiB",
                    number("/etcd_database_bytes") / MIB
                ),
            );
        }
        row(
            "CPU-s per 1,000 deliveries",
            format!("{:.4} (without publisher and sink)", number("/cpu_seconds_per_1000")),
        );
        for name in self.after.processes.keys() {
            let of = |figure: &str| number(&format!("/processes/{name}/{figure}"));
            let cpu = format!("{:.4} CPU-s per 1,000", of("cpu_seconds_per_1000"));
            let memory = ["idle_resident_bytes", "resident_bytes", "peak_bytes"]
                .map(|figure| format!("{:.1}", of(figure) / MIB));
            let written = of("written_bytes_per_event");
            row(
                &format!("  {name}"),
                format!(
                    "{cpu}, MiB idle/now/peak {}, writes {written:.0} B an event",
                    memory.join("/")
                ),
            );
        }
    }
}

fn yardstick(yardstick: &Yardstick) -> Value {
    let mut figures = latency(&yardstick.latency);
    figures["per_second"] = yardstick.per_second.into();
    figures
}

fn latency(histogram: &Histogram<u64>) -> Value {
    json!({
        "p50": histogram.value_at_quantile(0.5),
        "p90": histogram.value_at_quantile(0.9),
        "p99": histogram.value_at_quantile(0.99),
        "p999": histogram.value_at_quantile(0.999),
        "max": histogram.max(),
        "count": histogram.len(),
    })
}
