//! Beside real servers, which the tests start themselves, on free ports.

#[cfg(all(feature = "redis", feature = "testkit"))]
mod proxy;
mod servers;

#[cfg(all(feature = "postgres", feature = "redis", feature = "json"))]
mod examples;
#[cfg(all(feature = "http", feature = "testkit"))]
mod http;
#[cfg(all(feature = "memcached", feature = "testkit"))]
mod memcached;
#[cfg(all(feature = "mysql", feature = "testkit"))]
mod mysql;
#[cfg(all(feature = "postgres", feature = "testkit"))]
mod postgres;
#[cfg(all(feature = "redis", feature = "testkit"))]
mod redis;
#[cfg(all(feature = "redis", feature = "testkit"))]
mod redis_bus;
#[cfg(all(feature = "redis", feature = "testkit"))]
mod redis_cluster;
#[cfg(feature = "redis")]
mod redis_fleet;
#[cfg(all(feature = "redis", feature = "testkit"))]
mod redis_silent;
