//! Tests of the transactions that the ledger draws up.
