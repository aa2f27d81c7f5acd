//! The scenarios: what Postrider promises, on a real cluster.
