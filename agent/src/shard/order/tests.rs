//! Tests of the order of one webhook.
