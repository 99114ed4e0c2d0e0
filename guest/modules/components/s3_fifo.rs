#![no_std]
#![allow(missing_docs)]
larder_guest::export!(larder_modules::s3_fifo::S3Fifo, standalone);
