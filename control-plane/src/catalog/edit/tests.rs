//! Tests of the guarded writes.
