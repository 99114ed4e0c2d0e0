#![no_std]
#![allow(missing_docs)]
larder_guest::export!(patterns larder_modules::patterns::Textbook, standalone);
