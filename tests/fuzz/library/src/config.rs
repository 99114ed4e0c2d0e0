//! Any text is a configuration or an error that says what is wrong; and the rules of one that was taken can be had.

use larder::Config;

/// One file.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let config = match Config::from_toml(text) {
        Ok(config) => config,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    for keyspace in config.keyspaces() {
        assert!(config.rules(keyspace).is_ok(), "they were checked");
    }
}
