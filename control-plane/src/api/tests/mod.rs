//! Tests of the API through a real server.
