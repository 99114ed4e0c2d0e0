#![no_std]
#![allow(missing_docs)]
larder_guest::export!(larder_modules::lirs::Lirs, standalone);
