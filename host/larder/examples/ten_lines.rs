//! A cache in a process: no servers, no runtime, one load for each key however many ask.
//!
//! ```sh
//! cargo run -p larder --example ten_lines
//! ```

use std::time::Duration;

pub(crate) fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pages =
        larder::Cache::<u64, String>::builder().max_capacity(10_000).time_to_live(Duration::from_secs(60)).build()?;
    let page = |id: u64| pages.get_with(id, || format!("<h1>product {id}</h1>"));
    println!("{} {}", page(7), page(7));
    println!("{:?}", pages.stats());
    Ok(())
}
