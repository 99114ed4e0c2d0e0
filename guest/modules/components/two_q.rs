#![no_std]
#![allow(missing_docs)]
larder_guest::export!(larder_modules::two_q::TwoQ, standalone);
