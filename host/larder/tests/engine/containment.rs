//! A module cannot hurt its host: each hostile module, at each call, ends in the fault that names what it did, within its
//! bound, and what it held is free.

mod caches;

use std::time::Duration;

use crate::hostile::{Guest, HOARD, LOOP, RECURSE, TRAP};
use larder::{
    Patterns, Policy, PolicyError, Role,
    eviction::{Batch, Entries, Eviction, Fault, Limits},
};

const LIMITS: Limits = Limits { capacity: 100, expected: Some(100), seed: 1 };

/// Where a guest loops for ever its deadline is short, so that the tests are; how long it takes is not tested, only that it ends.
/// Any other is to end by what it does, however long this machine takes over it.
fn policy(guest: &Guest) -> Policy {
    let deadline = if guest.loops() { Duration::from_millis(20) } else { Duration::from_secs(300) };
    Policy::bytes(guest.build()).deadline(deadline)
}

fn entries(slots: std::ops::Range<u32>) -> Entries {
    Entries { fingerprints: slots.clone().map(u64::from).collect(), slots: slots.collect(), ..Entries::default() }
}

fn batch() -> Batch {
    Batch { now: 1, touched: vec![1, 2], touches: vec![3, 4], arrived: entries(3..20), ..Batch::default() }
}

/// How a guest's short life ended.
#[derive(Debug)]
enum End {
    /// It never got as far as running.
    Closed(PolicyError),
    Stopped(Fault),
    /// All calls were answered: with these victims.
    Alive(Vec<u32>),
}

/// Loads, opens, and makes every call there is.
fn live(guest: &Guest) -> End {
    let mut policy = match policy(guest).load().and_then(|module| module.open(&LIMITS)) {
        Ok(policy) => policy,
        Err(error) => return End::Closed(error),
    };
    let mut victims = Vec::new();
    let ended = policy
        .recall(&[7; 100])
        .and_then(|_| policy.adopt(&entries(0..3), &[], &mut victims))
        .and_then(|()| policy.advance(&batch(), &mut victims))
        .and_then(|()| policy.advance(&Batch::default(), &mut victims))
        .and_then(|()| policy.residents().map(drop))
        .and_then(|()| policy.learned().map(drop));
    match ended {
        Ok(()) => End::Alive(victims),
        Err(fault) => {
            assert!(fault.is_fatal());
            assert_eq!(policy.memory(), 0, "what it held is free");
            assert_eq!(policy.advance(&batch(), &mut victims), Err(fault.clone()), "it stays stopped");
            End::Stopped(fault)
        }
    }
}

/// The same misdeed in each function, and the call in which it shows.
fn everywhere(body: &'static str) -> [(&'static str, Guest); 10] {
    let guest = Guest::default;
    [
        ("start", Guest { start: body, ..guest() }),
        ("describe", Guest { describe: body, ..guest() }),
        ("open", Guest { open: body, ..guest() }),
        ("adopt", Guest { adopt: body, ..guest() }),
        ("advance", Guest { advance: body, ..guest() }),
        ("advance", Guest { free: body, ..guest() }),
        ("residents", Guest { residents: body, ..guest() }),
        ("learned", Guest { learned: body, ..guest() }),
        ("recall", Guest { recall: body, ..guest() }),
        // Taking in what the host tells: parameters, first of all.
        ("open", Guest { realloc: body, ..guest() }),
    ]
}

/// Checks that the guest is stopped in `call` with the expected kind of fault.
fn assert_stopped(call: &str, guest: &Guest, expected: impl Fn(&Fault) -> bool) {
    let end = live(guest);
    let (End::Stopped(fault) | End::Closed(PolicyError::Stopped { fault, .. })) = &end else {
        panic!("in `{call}`: {end:?}");
    };
    assert!(expected(fault) && fault.to_string().contains(&format!("`{call}`")), "in `{call}`: {fault:?}");
}

fn is_trap(with: &str) -> impl Fn(&Fault) -> bool + '_ {
    move |fault| matches!(fault, Fault::Trap { message, .. } if message.contains(with))
}

/// More than a true answer can be: a few MiB for so few entries.
fn is_too_large(fault: &Fault) -> bool {
    matches!(fault, Fault::TooLarge { limit_bytes, .. } if (1 << 20..4 << 20).contains(limit_bytes))
}

#[test]
fn the_well_behaved_one_lives() {
    assert!(matches!(live(&Guest::default()), End::Alive(victims) if victims.is_empty()));
}

#[test]
fn an_endless_loop_is_stopped_in_every_call() {
    for (call, guest) in everywhere(LOOP) {
        assert_stopped(call, &guest, |fault| matches!(fault, Fault::Deadline { .. }));
    }
}

#[test]
fn a_trap_is_reported_in_every_call() {
    for (call, guest) in everywhere(TRAP) {
        assert_stopped(call, &guest, is_trap("unreachable"));
    }
}

#[test]
fn deep_recursion_is_a_trap_in_every_call() {
    for (call, guest) in everywhere(RECURSE) {
        assert_stopped(call, &guest, is_trap("stack"));
    }
}

#[test]
fn growing_to_the_limit_is_reported_in_every_call() {
    for (call, guest) in everywhere(HOARD) {
        assert_stopped(
            call,
            &guest,
            |fault| matches!(fault, Fault::Memory { limit_bytes, .. } if *limit_bytes < 40 << 20),
        );
    }
}

#[test]
fn destructors_are_never_run() {
    for body in [LOOP, TRAP, HOARD] {
        assert!(matches!(live(&Guest { drop: body, ..Guest::default() }), End::Alive(_)));
    }
}

#[test]
fn a_guest_that_takes_no_for_an_answer_lives_within_its_limit() {
    let guest = Guest {
        open: "(call $hoard) (i32.store8 (i32.const 1100) (i32.const 0))
        (i32.store (i32.const 1104) (call $new (i32.const 0))) (i32.const 1100)",
        ..Guest::default()
    };
    let module = policy(&guest).memory_limit(1 << 20).load().unwrap();
    let mut policy = module.open(&LIMITS).unwrap();
    // A MiB, 256 bytes for each of 100 entries, and the two pages that the file declares; in whole pages.
    let limit = (1 << 20) + 100 * 256 + (2 << 16);
    assert_eq!(policy.memory(), limit / 65536 * 65536);
    policy.advance(&batch(), &mut Vec::new()).unwrap();
}

#[test]
fn a_larger_cache_may_take_more_memory() {
    let grow = "(if (i32.eq (memory.grow (i32.const 100)) (i32.const -1)) (then unreachable))
        (call $victims (i32.const 0) (i32.const 0))";
    let module = policy(&Guest { advance: grow, ..Guest::default() }).memory_limit(0).load().unwrap();
    let mut small = module.open(&LIMITS).unwrap();
    assert!(matches!(small.advance(&batch(), &mut Vec::new()), Err(Fault::Memory { call: "advance", .. })));
    // As many entries as were expected, or as were told of.
    let mut large = module.open(&Limits { expected: Some(30_000), ..LIMITS }).unwrap();
    large.advance(&batch(), &mut Vec::new()).unwrap();
    let mut told = module.open(&LIMITS).unwrap();
    told.advance(&Batch { arrived: entries(29_990..30_000), ..Batch::default() }, &mut Vec::new()).unwrap();
}

#[test]
fn what_a_file_declares_is_limited_too() {
    let end = live(&Guest { memory: "65536", ..Guest::default() });
    assert!(
        matches!(end, End::Closed(PolicyError::Stopped { fault: Fault::Memory { call: "start", .. }, .. })),
        "{end:?}"
    );
}

#[test]
fn tables_are_limited() {
    let grow = "(loop $more (br_if $more (i32.ne (table.grow $table (ref.null func) (i32.const 1000)) (i32.const -1))))
        unreachable";
    assert_stopped("advance", &Guest { advance: grow, ..Guest::default() }, is_trap("unreachable"));
}

#[test]
fn handles_are_limited() {
    let hoard = "(loop $more (drop (call $new (i32.const 0))) (br $more)) unreachable";
    assert_stopped("advance", &Guest { advance: hoard, ..Guest::default() }, is_trap("handle limit"));
}

#[test]
fn a_handle_that_is_none_is_a_trap() {
    let open =
        "(i32.store8 (i32.const 1100) (i32.const 0)) (i32.store (i32.const 1104) (i32.const 77)) (i32.const 1100)";
    assert_stopped("open", &Guest { open, ..Guest::default() }, is_trap("handle"));
}

#[test]
fn an_answer_larger_than_any_true_one_is_not_taken() {
    // Within its memory: some 8 MB of victims.
    let huge = "(drop (memory.grow (i32.const 200))) (call $victims (i32.const 0) (i32.const 2000000))";
    assert_stopped("advance", &Guest { advance: huge, ..Guest::default() }, is_too_large);
    assert_stopped("adopt", &Guest { adopt: huge, ..Guest::default() }, is_too_large);
    assert_stopped("learned", &Guest { learned: huge, ..Guest::default() }, is_too_large);
    // Beyond its memory, and beyond any.
    for beyond in ["(i32.const 200000)", "(i32.const 0x3fffffff)", "(i32.const -1)"] {
        let advance: &str = format!("(call $victims (i32.const 0) {beyond})").leak();
        assert_stopped("advance", &Guest { advance, ..Guest::default() }, is_trap(""));
    }
    // Not aligned, as a list of integers must be.
    let askew = "(call $victims (i32.const 1) (i32.const 1))";
    assert_stopped("advance", &Guest { advance: askew, ..Guest::default() }, is_trap("align"));
    // The pointer to the answer itself.
    assert_stopped("advance", &Guest { advance: "(i32.const -4)", ..Guest::default() }, is_trap(""));
}

#[test]
fn room_that_is_none_is_a_trap() {
    for realloc in ["(i32.const -8)", "(i32.const 0x7ffffff8)", "(i32.const 3)"] {
        assert_stopped("open", &Guest { realloc, ..Guest::default() }, is_trap("realloc"));
    }
}

/// The cache checks them; here it is only seen that they come as they are.
#[test]
fn nonsense_victims_come_as_they_are() {
    let victims = |advance| match live(&Guest { advance, ..Guest::default() }) {
        End::Alive(victims) => victims,
        end => panic!("{end:?}"),
    };
    let not_resident =
        "(i32.store (i32.const 2048) (i32.const 4000000000)) (call $victims (i32.const 2048) (i32.const 1))";
    assert_eq!(victims(not_resident), [4_000_000_000; 2]);
    let twice = "(i32.store (i32.const 2048) (i32.const 5)) (i32.store (i32.const 2052) (i32.const 5))
        (call $victims (i32.const 2048) (i32.const 2))";
    assert_eq!(victims(twice), [5; 4]);
    // All zeros: the same slot, many times.
    assert_eq!(victims("(call $victims (i32.const 4096) (i32.const 10000))"), [0; 20_000]);
}

#[test]
fn a_refusal_is_passed_on() {
    let refuse = "(i32.store8 (i32.const 1100) (i32.const 1))
        (i32.store (i32.const 1104) (i32.const 512)) (i32.store (i32.const 1108) (i32.const 7))
        (i32.store (i32.const 1112) (i32.const 524)) (i32.store (i32.const 1116) (i32.const 10)) (i32.const 1100)";
    let end = live(&Guest { open: refuse, ..Guest::default() });
    let End::Closed(error @ PolicyError::Refused { .. }) = end else { panic!("{end:?}") };
    assert_eq!(error.to_string(), "`hostile` refuses the parameter `hostile`: Means harm");
}

#[test]
fn a_card_of_nonsense_is_refused() {
    let not_utf8 = "(i32.store8 (i32.const 513) (i32.const 255)) (i32.const 1024)";
    assert_stopped("describe", &Guest { describe: not_utf8, ..Guest::default() }, is_trap("utf-8"));
    let long = "(drop (memory.grow (i32.const 100))) (i32.store (i32.const 1028) (i32.const 6000000)) (i32.const 1024)";
    assert_stopped("describe", &Guest { describe: long, ..Guest::default() }, is_too_large);
    let end = live(&Guest { roles: 0, ..Guest::default() });
    assert!(
        matches!(&end, End::Closed(PolicyError::WrongWorld { problem, .. }) if problem.contains("role")),
        "{end:?}"
    );
}

#[test]
fn another_version_is_named() {
    let end = live(&Guest { version: "0.2.0", ..Guest::default() });
    let End::Closed(error @ PolicyError::WrongWorld { .. }) = end else { panic!("{end:?}") };
    assert!(error.to_string().contains("larder:policy/about@0.2.0"), "{error}");
    assert!(error.to_string().contains("0.1.0"), "{error}");
}

#[test]
fn an_import_that_no_host_gives_is_named() {
    let imports =
        (r#"(import "surprise" "now" (func (result i64)))"#, "import surprise: interface { now: func() -> u64; }");
    let end = live(&Guest { imports, ..Guest::default() });
    let End::Closed(error @ PolicyError::Import { .. }) = end else { panic!("{end:?}") };
    assert!(error.to_string().contains("imports surprise;"), "{error}");
}

/// A guest that calls a function of WASI in `advance`.
fn wasi(version: &str, call: &'static str) -> Guest {
    let core = format!(
        r#"(import "wasi:sockets/nowhere@{version}" "connect" (func $connect (result i32)))
           (import "wasi:cli/exit@{version}" "exit" (func $exit (param i32)))
           (import "wasi:cli/stderr@{version}" "get-stderr" (func $stderr (result i32)))
           (import "wasi:io/streams@{version}" "[method]output-stream.blocking-write-and-flush"
             (func $write (param i32 i32 i32 i32)))
           (import "wasi:io/streams@{version}" "[method]output-stream.subscribe" (func $subscribe (param i32) (result i32)))
           (import "wasi:io/poll@{version}" "poll" (func $poll (param i32 i32 i32)))
           (import "wasi:random/random@{version}" "get-random-u64" (func $random (result i64)))
           (import "wasi:random/random@{version}" "get-random-bytes" (func $bytes (param i64 i32)))
           (import "wasi:clocks/monotonic-clock@{version}" "now" (func $now (result i64)))"#
    );
    let world = format!(
        "import wasi:sockets/nowhere@{version}; import wasi:cli/exit@{version}; import wasi:cli/stderr@{version};
         import wasi:io/poll@{version}; import wasi:io/streams@{version};
         import wasi:random/random@{version}; import wasi:clocks/monotonic-clock@{version};"
    );
    let packages = format!(
        "package wasi:sockets@{version} {{ interface nowhere {{ connect: func() -> u32; }} }}
         package wasi:cli@{version} {{ interface exit {{ exit: func(status: result); }}
            interface stderr {{ use wasi:io/streams@{version}.{{output-stream}}; get-stderr: func() -> output-stream; }} }}
         package wasi:io@{version} {{
            interface error {{ resource error; }}
            interface poll {{ resource pollable; poll: func(in: list<borrow<pollable>>) -> list<u32>; }}
            interface streams {{ use poll.{{pollable}}; use error.{{error}};
                variant stream-error {{ last-operation-failed(error), closed }}
                resource output-stream {{
                    blocking-write-and-flush: func(contents: list<u8>) -> result<_, stream-error>;
                    subscribe: func() -> pollable; }} }} }}
         package wasi:random@{version} {{ interface random {{
            get-random-u64: func() -> u64; get-random-bytes: func(len: u64) -> list<u8>; }} }}
         package wasi:clocks@{version} {{ interface monotonic-clock {{ now: func() -> u64; }} }}"
    );
    Guest { imports: (core.leak(), world.leak()), packages: packages.leak(), advance: call, ..Guest::default() }
}

#[test]
fn wasi_is_there_and_empty() {
    let nothing = "(call $victims (i32.const 0) (i32.const 0))";
    for version in ["0.2.0", "0.2.6", "0.2.99"] {
        assert!(matches!(live(&wasi(version, nothing)), End::Alive(_)));
    }
    let connect = "(drop (call $connect)) unreachable";
    assert_stopped("advance", &wasi("0.2.6", connect), is_trap("wasi:sockets/nowhere@0.2.6#connect"));
    let exit = "(call $exit (i32.const 0)) unreachable";
    assert_stopped("advance", &wasi("0.2.6", exit), is_trap("wasi:cli/exit@0.2.6#exit"));
    let hoard = "(call $bytes (i64.const 0x1000000000) (i32.const 4096)) unreachable";
    assert_stopped("advance", &wasi("0.2.6", hoard), is_trap("random bytes"));
    let end = live(&wasi("0.3.0", nothing));
    assert!(matches!(&end, End::Closed(PolicyError::Import { imports, .. }) if imports.len() >= 4), "{end:?}");
}

#[test]
fn what_a_guest_prints_is_in_its_trap() {
    // Twice the same, to a stream that it borrows, having waited for it; "Means harm" is on its card.
    let print = "(local $stderr i32)
        (local.set $stderr (call $stderr))
        (i32.store (i32.const 4096) (call $subscribe (local.get $stderr)))
        (call $poll (i32.const 4096) (i32.const 1) (i32.const 4104))
        (call $write (local.get $stderr) (i32.const 524) (i32.const 5) (i32.const 4096))
        (call $write (local.get $stderr) (i32.const 529) (i32.const 5) (i32.const 4096))
        unreachable";
    assert_stopped("advance", &wasi("0.2.6", print), is_trap("it printed: Means harm"));
    // Pollables that are never let go.
    let hoard = "(loop $more (drop (call $subscribe (call $stderr))) (br $more)) unreachable";
    assert_stopped("advance", &wasi("0.2.6", hoard), is_trap("handle limit"));
}

#[test]
fn time_is_the_batchs_and_randomness_the_seeds() {
    let show = "(i32.store (i32.const 2048) (i32.wrap_i64 (i64.div_u (call $now) (i64.const 1000000))))
        (i32.store (i32.const 2052) (i32.wrap_i64 (call $random)))
        (call $victims (i32.const 2048) (i32.const 2))";
    let module = policy(&wasi("0.2.6", show)).load().unwrap();
    let run = |seed| {
        let mut policy = module.open(&Limits { seed, ..LIMITS }).unwrap();
        let mut shown = Vec::new();
        for now in [5, 70] {
            policy.advance(&Batch { now, ..Batch::default() }, &mut shown).unwrap();
        }
        shown
    };
    assert_eq!((run(1)[0], run(1)[2]), (5, 70));
    assert_eq!(run(1), run(1));
    assert_ne!(run(1)[1], run(1)[3]);
    assert_ne!(run(1)[1], run(2)[1]);
}

#[test]
fn what_is_no_component_is_told_apart() {
    let load = |bytes: &[u8]| Policy::bytes(bytes).load().unwrap_err();
    let says = |bytes: &[u8], what: &str| {
        let error = load(bytes);
        assert!(matches!(error, PolicyError::NotAComponent { .. }) && error.to_string().contains(what), "{error}");
    };
    says(b"", "empty");
    says(b"\x7fELF\x02\x01\x01", "not WebAssembly");
    says("fn main() {}".as_bytes(), "text");
    says(b"(component)", "wasm-tools parse");
    says(b"\0asm\x01\0\0\0", "wasm32-wasip2");
    says(b"\0asm\x0e\0\x01\0", "version");
    // A component, but of nothing.
    let error = load(b"\0asm\x0d\0\x01\0");
    assert!(matches!(error, PolicyError::WrongWorld { .. }), "{error}");
    assert!(error.to_string().contains("larder:policy/about@0.1.0"), "{error}");
    // A policy for eviction is no module of patterns, and is told where it belongs.
    let error = Patterns::bytes(Guest::default().build()).load().unwrap_err();
    assert!(matches!(error, PolicyError::OtherRole { role: Role::Eviction, .. }), "{error}");
    assert!(error.to_string().contains("it is an eviction policy") && error.to_string().contains("Policy::file"));
    let error = Policy::file("no/such/file.wasm").load().unwrap_err();
    assert!(
        matches!(error, PolicyError::Unreadable { .. }) && error.to_string().contains("no/such/file.wasm"),
        "{error}"
    );
}

#[test]
fn a_file_cut_short_is_refused_wherever_it_was_cut() {
    let whole = Guest::default().build();
    assert!(Policy::bytes(whole.clone()).load().is_ok());
    let mut truncated = 0;
    for length in (1..64).chain((64..whole.len()).step_by(7)) {
        match Policy::bytes(&whole[..length]).load() {
            Err(PolicyError::Truncated { .. }) => truncated += 1,
            // Cut between two sections.
            Err(PolicyError::Invalid { .. } | PolicyError::WrongWorld { .. }) => {}
            // What is missing is the last section, and custom: nothing that runs.
            Ok(_) if whole[length] == 0 => {}
            other => panic!("cut to {length} of {}: {other:?}", whole.len()),
        }
    }
    assert!(truncated > 100, "{truncated}");
}

#[test]
fn a_file_with_a_changed_byte_never_hurts() {
    let whole = Guest::default().build();
    for at in (8..whole.len()).step_by(11) {
        let mut bad = whole.clone();
        bad[at] ^= 0x15;
        let policy = Policy::bytes(bad).deadline(Duration::from_millis(20));
        let Ok(mut policy) = policy.load().and_then(|module| module.open(&LIMITS)) else { continue };
        // Whatever it is now, it answers or is stopped.
        let _ = policy.advance(&batch(), &mut Vec::new());
    }
}

/// Each of these takes all the memory that it may; if any of it were kept, hundreds of megabytes would be.
#[cfg(target_os = "linux")]
#[test]
fn nothing_leaks() {
    let resident = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
        pages * 4096
    };
    let stopped = policy(&Guest { advance: HOARD, ..Guest::default() }).load().unwrap();
    let dropped = policy(&Guest {
        open: "(call $hoard) (i32.store8 (i32.const 1100) (i32.const 0))
            (i32.store (i32.const 1104) (call $new (i32.const 0))) (i32.const 1100)",
        ..Guest::default()
    })
    .load()
    .unwrap();
    let round = || {
        let mut alive: Vec<Box<dyn Eviction>> = Vec::new();
        let mut policy = stopped.open(&LIMITS).unwrap();
        assert!(policy.advance(&batch(), &mut Vec::new()).is_err());
        // A stopped one may live on in its cache: it holds nothing.
        alive.push(policy);
        drop(dropped.open(&LIMITS).unwrap());
        alive
    };
    let mut kept = round();
    let before = resident();
    (0..30).for_each(|_| kept.extend(round()));
    // Other tests run beside this one, a few instances at a time.
    let grown = resident().saturating_sub(before);
    assert!(grown < 400 << 20, "{grown} bytes more after 60 instances of 32 MiB");
}

/// The `lru` crate's hash table moves house within one call, which with millions of entries takes longer than a batch may: no fault
/// of a policy's.
#[test]
#[ignore = "seconds, and half a gigabyte"]
fn a_table_that_grows_with_a_large_cache_is_no_endless_loop() {
    for policy in ["lru", "adaptive"] {
        let entries = 4_000_000;
        let cache = larder::Cache::<u32, u32>::builder()
            .max_capacity(entries)
            .shards(1)
            .policy(Policy::builtin(policy).unwrap())
            .build()
            .unwrap();
        (0..entries as u32 + 10_000).for_each(|key| cache.insert(key, key));
        cache.run_pending_tasks();
        let stats = cache.stats();
        assert_eq!((stats.faults, stats.fallback_evictions), (0, 0), "{policy}: {:?}", cache.faults());
        assert_eq!(cache.entry_count(), entries);
    }
}

/// A bound on entries is no measure of how long a call may take: nothing of it need be there.
#[test]
fn an_endless_loop_is_stopped_as_soon_whatever_the_bound() {
    for capacity in [100, 50_000_000, u64::MAX] {
        let policy = Policy::bytes(Guest { advance: LOOP, ..Guest::default() }.build());
        let cache = larder::Cache::<u64, u64>::builder().max_capacity(capacity).policy(policy).build().unwrap();
        cache.insert(1, 1);
        cache.run_pending_tasks();
        let faults = cache.faults();
        let limits = faults.iter().map(|fault| match fault.fault {
            Fault::Deadline { deadline_ms, .. } => deadline_ms,
            ref other => panic!("{other}"),
        });
        assert!(limits.clone().count() > 0 && limits.clone().all(|limit| limit < 200), "{capacity}: {faults:?}");
    }
}

#[test]
fn any_deadline_will_do() {
    let policy = Policy::builtin("lru").unwrap().deadline(Duration::MAX);
    let cache = larder::Cache::<u64, u64>::builder().max_capacity(10).policy(policy).build().unwrap();
    cache.insert(1, 1);
    cache.run_pending_tasks();
    assert!(cache.faults().is_empty() && cache.contains_key(&1));
}

/// Threads of other languages, and of small systems, have less stack than Rust's own.
#[test]
fn deep_recursion_is_a_trap_on_a_small_stack() {
    let policy = Policy::bytes(Guest { advance: RECURSE, ..Guest::default() }.build());
    let cache = larder::Cache::<u64, u64>::builder().max_capacity(10).policy(policy).build().unwrap();
    let insert = move || {
        cache.insert(1, 1);
        cache.faults()
    };
    let faults = std::thread::Builder::new().stack_size(512 << 10).spawn(insert).unwrap().join().unwrap();
    assert!(matches!(&faults[0].fault, Fault::Trap { message, .. } if message.contains("stack")), "{faults:?}");
}
