//! Tests of the whole machine.

mod world;

mod random;
