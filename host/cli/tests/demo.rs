//! `larder demo` from outside: what its report says must hold, and hold together.

mod common;
#[path = "../../larder/tests/live/servers/mod.rs"]
mod live;

use std::fs;
use std::process::Output;

use common::{larder, scratch, text};
use serde_json::Value;

const PARTS: [&str; 5] = ["template", "product", "price", "reviews", "stock"];

fn demo(words: &str, name: &str) -> (Output, Value) {
    let output = larder(&format!("demo --products 400 --rate 150 --format json {words}"), &scratch(name));
    assert!(output.status.success(), "{words}: {}", text(&output.stderr));
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{words}: {error}"));
    (output, report)
}

fn number(value: &Value, name: &str) -> u64 {
    value[name].as_u64().unwrap_or_else(|| panic!("{name} in {value}"))
}

fn events(report: &Value) -> String {
    let events = report["events"].as_array().expect("events");
    events.iter().map(|event| format!("{} {}\n", event["at"], event["what"].as_str().expect("words"))).collect()
}

/// What holds in every report.
fn consistent(report: &Value) {
    assert_eq!(number(report, "wrong_reads"), 0, "{report}");
    assert_eq!(number(report, "fallbacks"), 0, "no step of the module went wrong: {report}");
    let totals = &report["totals"];
    assert!(number(totals, "asked") >= number(totals, "answered") + number(totals, "failed"), "{totals}");
    assert!(
        number(totals, "answered") > 0 && number(totals, "not_found") > 0 && number(totals, "sold") > 0,
        "{totals}"
    );
    let parts = report["parts"].as_array().expect("parts");
    assert_eq!(parts.iter().map(|part| part["part"].as_str().expect("a name")).collect::<Vec<_>>(), PARTS);
    for part in parts {
        let [reads, near, far] = ["reads", "near", "far"].map(|name| number(part, name));
        let [database, failed, stale, rescued] =
            ["database", "failed", "stale", "rescued"].map(|name| number(part, name));
        assert_eq!(reads, near + far + database + failed, "{part}");
        assert!(stale + rescued <= near + far, "only copies are old: {part}");
        assert_eq!(number(part, "wrong"), 0, "{part}");
        let ratio = (near + far) as f64 / (reads - failed) as f64;
        assert!((part["hit_ratio"].as_f64().expect("a ratio") - ratio).abs() < 1e-9, "{part}");
        assert!(near > far, "what is popular is near: {part}");
    }
    let audit = &report["audit"];
    let [opened_with, refilled, sold, left] =
        ["opened_with", "refilled", "sold", "left"].map(|name| number(audit, name));
    assert_eq!(opened_with + refilled, sold + left, "{audit}");
    assert!(sold >= number(totals, "sold"), "what was acknowledged is in the books: {audit}, {totals}");
    // Only stock is written through a cache.
    assert_eq!(
        parts.iter().map(|part| number(part, "saves") > 0).collect::<Vec<_>>(),
        [false, false, false, false, true]
    );
    let times = ["p50", "p99", "p999", "max"].map(|name| report["page_ms"][name].as_f64().expect("a time"));
    assert!(times.is_sorted() && times[0] > 0.0, "{times:?}");
    let timeline = report["timeline"].as_array().expect("a timeline");
    let answered: u64 = timeline.iter().map(|second| number(second, "answered")).sum();
    assert!(answered <= number(totals, "answered"), "{timeline:?}");
}

#[test]
fn a_stampede_without_protection_and_one_with_it() {
    let (_, report) = demo("--seconds 12 --at 3=stampede --at 8=protected", "stampedes");
    consistent(&report);
    let stampedes = report["stampedes"].as_array().expect("stampedes");
    assert_eq!(stampedes.len(), 2, "{}", events(&report));
    assert_eq!([&stampedes[0]["protected"], &stampedes[1]["protected"]], [false, true]);
    let [without, with] = [&stampedes[0], &stampedes[1]].map(|stampede| number(stampede, "queries"));
    // 100 readers a second, until the first of some loads of about 200 ms has ended.
    assert!(without >= 3, "{without}");
    assert_eq!(with, 1, "one load in both processes");
}

#[test]
fn pages_are_answered_while_the_database_is_gone() {
    let (_, report) = demo("--seconds 22 --at 8=kill-database --at 20=restore-database", "no_database");
    consistent(&report);
    let timeline = report["timeline"].as_array().expect("a timeline");
    let at = |second: &Value| second["at"].as_f64().expect("a time");
    let gone: Vec<_> = timeline.iter().filter(|second| at(second) > 9.5 && at(second) < 20.0).collect();
    let sum = |name: &str| gone.iter().map(|second| number(second, name)).sum::<u64>();
    let (answered, failed) = (sum("answered"), sum("failed"));
    assert!(gone.len() >= 8 && gone.iter().all(|second| number(second, "answered") > 0), "{gone:?}");
    // What was never asked for before cannot be had; what was can.
    assert!(answered > 3 * failed, "{answered} answered, {failed} failed");
    assert!(sum("rescued") > 0, "{gone:?}");
    let stock = &report["parts"][4];
    assert!(number(stock, "rescued") > 0, "its time to live is the shortest: {stock}");
    assert!(number(&report["totals"], "not_sold") > 0, "nothing is sold without a database: {report}");
}

#[test]
fn the_far_tier_goes_and_modules_are_swapped() {
    let words =
        "--seconds 10 --at 2=swap-policy --at 3=swap-patterns --at 4=kill-far --at 6=restore-far --at 7=swap-policy";
    let (_, report) = demo(words, "far");
    consistent(&report);
    assert_eq!(number(&report, "swaps"), 3, "{}", events(&report));
    // From the default to the first two built-ins in the list, which is in alphabetical order.
    assert_eq!(report["policy"], "arc", "{}", events(&report));
    assert_eq!(number(&report["totals"], "failed"), 0, "nobody noticed: {report}");
    for said in ["adaptive -> 2q", "2q -> arc", "patterns 0.1.0", "the far tier is cut off", "the far tier is back"] {
        assert!(events(&report).contains(said), "{said}: {}", events(&report));
    }
}

/// The same shop on a real database and a real far tier, of which nothing is left in the end.
#[test]
fn on_postgresql_and_redis() {
    let Some(program) = live::or_skip("redis-server", "redis-server") else { return };
    let Some(database) = live::postgres::start() else { return };
    let redis = live::Server::start(&program, |command, port, directory| {
        command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""]).arg("--dir").arg(directory);
    });
    let stores = format!("--postgres {} --redis redis://127.0.0.1:{}", live::postgres::url(database.port), redis.port);
    let words = "--seconds 14 --at 3=stampede --at 7=protected --at 10=kill-far --at 12=restore-far";
    let (_, report) = demo(&format!("{stores} {words}"), "real");
    consistent(&report);
    let places = text(report["places"].to_string().as_bytes());
    assert!(places.contains("PostgreSQL at 127.0.0.1") && places.contains("Redis"), "{places}");
    assert!(!places.contains("s3cret"), "{places}");
    let stampedes = report["stampedes"].as_array().expect("stampedes");
    let [without, with] = [&stampedes[0], &stampedes[1]].map(|stampede| number(stampede, "queries"));
    assert!(without >= 3 && with == 1, "{without} queries without protection, {with} with it");
    assert!(report["parts"].as_array().expect("parts").iter().skip(1).all(|part| number(part, "far") > 0), "{report}");

    let output = larder(&format!("demo {stores} --clean"), &scratch("clean"));
    let said = text(&output.stdout);
    assert!(output.status.success() && said.contains("larder_demo is gone"), "{said}{}", text(&output.stderr));
    let again = text(&larder(&format!("demo {stores} --clean"), &scratch("clean")).stdout);
    assert!(!said.contains("\n0 keys") && again.contains("\n0 keys"), "{said}{again}");
}

#[test]
fn the_picture_of_a_real_run() {
    let directory = scratch("record");
    let output = larder("demo --products 400 --rate 150 --record stampede.svg", &directory);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let report = text(&output.stdout);
    assert!(report.contains("with protection: 1 query for one key"), "{report}");
    assert!(report.contains("older than an acknowledged write or invalidation: 0"), "{report}");
    let svg = fs::read_to_string(directory.join("stampede.svg")).expect("the picture");
    well_formed(&svg);
    assert!(svg.contains("Under its rule: 1 query for the key"), "{svg}");
    assert_eq!(svg.matches("<polyline").count(), 4);
}

/// Every element is closed by its own end, and no figure is missing.
fn well_formed(svg: &str) {
    let mut open = Vec::new();
    for tag in svg.split('<').skip(1) {
        let (tag, _) = tag.split_once('>').expect("a tag ends");
        let name = tag.trim_start_matches('/').split([' ', '/']).next().expect("a name");
        match (tag.starts_with('/'), tag.ends_with('/')) {
            (true, _) => assert_eq!(open.pop(), Some(name), "{tag}"),
            (false, true) => {}
            (false, false) => open.push(name),
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
    }
    assert!(open.is_empty(), "{open:?}");
    assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
}

#[test]
fn lines_and_a_report_for_people() {
    let output = larder("demo --products 100 --rate 50 --seconds 3 --at 1=pause", &scratch("lines"));
    assert!(output.status.success(), "{}", text(&output.stderr));
    let said = text(&output.stdout);
    assert!(said.contains("pages/s") && said.contains("-- no more customers"), "{said}");
    assert!(PARTS.iter().all(|part| said.contains(&format!("\n  {part} "))), "{said}");
}

#[test]
fn what_a_short_run_leaves_out_is_said() {
    let output = larder("demo --products 100 --rate 50 --seconds 2", &scratch("short"));
    assert!(output.status.success());
    let said = text(&output.stderr);
    assert!(said.contains("the tour takes 30 seconds") && said.contains("after 2 is left out"), "{said}");
}

/// Somebody takes the connection, and says nothing.
#[test]
fn a_database_that_does_not_answer_is_given_up() {
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("its address").port();
    let words = format!("demo --seconds 1 --postgres postgres://me:s3cret@127.0.0.1:{port}/x");
    let output = larder(&words, &scratch("silent"));
    let said = text(&output.stderr);
    assert!(
        !output.status.success() && said.contains("has not answered for 10s") && !said.contains("s3cret"),
        "{said}"
    );
}

#[test]
fn what_is_wrong_is_said() {
    let directory = scratch("wrong");
    for (words, why) in [
        ("--at 5=explode", "kill-database"),
        ("--at soon=pause", "no number of seconds"),
        ("--rate 0", "from 1 to 100000"),
        ("--record a.svg --seconds 3", "cannot be used with"),
        ("--record nowhere/a.svg", "cannot write the picture to nowhere/a.svg; choose another"),
        ("--seconds 3 --at 1=pause --at 99=stampede", "--at 99 is after the end, 3 seconds"),
        ("--at 99=stampede", "--at 99 is after the end, 30 seconds"),
        ("--policy lruu", "did you mean `lru`"),
        ("--seconds 1 --patterns nowhere.wasm", "nowhere.wasm"),
        ("--clean", "--postgres and --redis"),
        ("--seconds 1 --redis redis://127.0.0.1:1", "Redis at 127.0.0.1:1"),
        ("--seconds 1 --postgres postgres://me:s3cret@127.0.0.1:1/x", "cannot connect to the database of --postgres"),
    ] {
        let output = larder(&format!("demo {words}"), &directory);
        let said = text(&output.stderr);
        assert!(!output.status.success() && said.contains(why) && !said.contains("s3cret"), "{words}: {said}");
    }
}
