//! The functions of the interface, called as C calls them, over a protocol that notes its calls.

#![allow(
    unsafe_code,
    clippy::undocumented_unsafe_blocks,
    clippy::unwrap_used,
    reason = "tests of an interface with pointers; each is of a value of the test, or null"
)]

use sosplice_c::end::*;
use sosplice_c::layer::*;
use sosplice_c::protocol::*;
use std::ffi::{c_int, c_void};
use std::ptr::{null, null_mut};
use std::sync::Mutex;

/// The context of a socket: the calls of its protocol.
#[derive(Default)]
struct Calls(Mutex<Vec<&'static str>>);

impl Calls {
    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    fn context(&self) -> *mut c_void {
        std::ptr::from_ref(self).cast_mut().cast()
    }
}

unsafe fn note(context: *mut c_void, call: &'static str) {
    // SAFETY: each context here is of a value that outlives its sockets.
    let calls: &Calls = unsafe { context.cast::<Calls>().as_ref() }.unwrap();
    calls.0.lock().unwrap().push(call);
}

macro_rules! noting {
    ($name:ident) => {
        unsafe extern "C" fn $name(context: *mut c_void) {
            unsafe { note(context, stringify!($name)) };
        }
    };
}

noting!(output);
noting!(abort);
noting!(detach);
noting!(release);

unsafe extern "C" fn rcvd(context: *mut c_void, _idle: c_int) {
    unsafe { note(context, "rcvd") };
}

fn functions() -> Functions {
    Functions {
        size: size_of::<Functions>(),
        name: c"test".as_ptr(),
        output: Some(output),
        rcvd: Some(rcvd),
        abort: Some(abort),
        detach: Some(detach),
        release: Some(release),
        state: None,
    }
}

fn config() -> Config {
    Config {
        size: size_of::<Config>(),
        flavor: SOSPLICE_FREEBSD,
        layout: SOSPLICE_LP64,
        workers: 0,
        descriptors: 0,
        splices: 0,
        flags: 0,
        on_end: None,
        context: null_mut(),
    }
}

fn layer(config: &Config) -> *mut Layer {
    let mut layer = null_mut();
    assert_eq!(unsafe { sosplice_new(config, &raw mut layer) }, 0);
    layer
}

fn socket(layer: *const Layer, calls: &Calls) -> (*mut End, c_int) {
    let (mut end, mut fd) = (null_mut(), -1);
    let table = functions();
    let made = unsafe {
        let context = calls.context();
        sosplice_socket(
            layer,
            &raw const table,
            context,
            10,
            10,
            &raw mut end,
            &raw mut fd,
        )
    };
    assert_eq!(made, 0);
    (end, fd)
}

fn state(end: *const End) -> State {
    let mut state = std::mem::MaybeUninit::uninit();
    assert_eq!(unsafe { sosplice_end_state(end, state.as_mut_ptr()) }, 0);
    // SAFETY: stored above.
    unsafe { state.assume_init() }
}

fn append(end: *const End, data: &[u8]) {
    let appended = unsafe { sosplice_end_append_rcv(end, data.as_ptr().cast(), data.len()) };
    assert_eq!(appended, 0);
}

/// `SO_SPLICE` with the whole struct.
fn splice(layer: *const Layer, source: c_int, sink: c_int, limit: i64) -> c_int {
    let option = Splice {
        sp_fd: sink,
        sp_max: limit,
        sp_idle_sec: 0,
        sp_idle_usec: 0,
    };
    let value = (&raw const option).cast();
    let (level, name) = (SOSPLICE_SOL_SOCKET, SOSPLICE_SO_SPLICE);
    unsafe { sosplice_setsockopt(layer, source, level, name, value, size_of::<Splice>()) }
}

unsafe extern "C" fn collect(into: *mut c_void, data: *const c_void, length: usize) -> usize {
    // SAFETY: the contract of `sosplice_end_read_snd`, and the context of this test.
    unsafe {
        let into: &mut Vec<u8> = into.cast::<Vec<u8>>().as_mut().unwrap();
        into.extend(std::slice::from_raw_parts(data.cast::<u8>(), length));
    }
    length
}

fn read_snd(end: *const End, offset: usize, max: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut used = 0;
    let read = unsafe {
        let into = (&raw mut bytes).cast();
        sosplice_end_read_snd(end, offset, max, Some(collect), into, &raw mut used)
    };
    assert_eq!((read, used), (0, bytes.len()));
    bytes
}

#[test]
fn the_struct_is_that_of_the_kernels() {
    use std::mem::offset_of;
    assert_eq!(size_of::<Splice>(), 32);
    assert_eq!(offset_of!(Splice, sp_max), 8);
    assert_eq!(offset_of!(Splice, sp_idle_sec), 16);
    assert_eq!(offset_of!(Splice, sp_idle_usec), 24);
}

#[test]
fn null_pointers_are_efault() {
    let mut made = null_mut::<Layer>();
    let (mut size, mut fd, mut end) = (0, 0, null_mut());
    let layer = layer(&config());
    let (none, no_end) = (null::<Layer>(), null::<End>());
    let table = functions();
    let results = unsafe {
        [
            sosplice_new(null(), &raw mut made),
            sosplice_new(&config(), null_mut()),
            sosplice_socket(none, &table, null_mut(), 0, 0, &raw mut end, &raw mut fd),
            sosplice_socket(layer, null(), null_mut(), 0, 0, &raw mut end, &raw mut fd),
            sosplice_socket(layer, &table, null_mut(), 0, 0, null_mut(), &raw mut fd),
            sosplice_socket(layer, &table, null_mut(), 0, 0, &raw mut end, null_mut()),
            sosplice_close(none, 0),
            sosplice_id(none, 0, null_mut()),
            sosplice_abort(none, 0),
            sosplice_shutdown(none, 0, libc::SHUT_WR),
            sosplice_recv(none, 0, null_mut(), 0, &raw mut size),
            sosplice_recv(layer, 0, null_mut(), 1, &raw mut size),
            sosplice_recv(layer, 0, null_mut(), 0, null_mut()),
            sosplice_send(none, 0, null(), 0, &raw mut size),
            sosplice_send(layer, 0, null(), 1, &raw mut size),
            sosplice_setsockopt(none, 0, 0, 0, null(), 0),
            sosplice_setsockopt(layer, 0, 0, 0, null(), 1),
            sosplice_getsockopt(none, 0, 0, 0, null_mut(), &raw mut size),
            sosplice_getsockopt(layer, 0, 0, 0, null_mut(), null_mut()),
            sosplice_ended(none, 0, SOSPLICE_SOURCE, null_mut()),
            sosplice_end_state(no_end, null_mut()),
            sosplice_end_connected(no_end),
            sosplice_end_append_rcv(no_end, null(), 0),
            sosplice_end_cantrcvmore(no_end),
            sosplice_end_cantsendmore(no_end),
            sosplice_end_disconnected(no_end, 0),
            sosplice_end_set_error(no_end, libc::EPIPE),
            sosplice_end_flush_rcv(no_end, null_mut()),
            sosplice_end_flush_snd(no_end),
            sosplice_end_read_snd(no_end, 0, 0, Some(collect), null_mut(), null_mut()),
            sosplice_end_drop_snd(no_end, 0),
        ]
    };
    for (at, result) in results.into_iter().enumerate() {
        assert_eq!(result, libc::EFAULT, "call {at}");
    }
    unsafe {
        assert_eq!((sosplice_run(none), sosplice_timeout(none)), (-1, -1));
        sosplice_end_free(null_mut());
        sosplice_free(null_mut());
        sosplice_free(layer);
    }
}

#[test]
fn wrong_values_are_einval() {
    let wrong: [fn(&mut Config); 6] = [
        |config| config.size -= 1,
        |config| config.flavor = 2,
        |config| config.layout = -1,
        |config| config.flags = 4,
        |config| config.workers = 1025,
        // A negative number in C.
        |config| config.workers = usize::MAX,
    ];
    for change in wrong {
        let mut config = config();
        change(&mut config);
        let mut made = null_mut();
        assert_eq!(
            unsafe { sosplice_new(&config, &raw mut made) },
            libc::EINVAL
        );
        assert!(made.is_null());
    }
    let layer = layer(&config());
    let calls = Calls::default();
    let (end, fd) = socket(layer, &calls);
    let table = Functions {
        size: 1,
        ..functions()
    };
    let (mut other, mut number) = (null_mut(), -1);
    let mut result = std::mem::MaybeUninit::uninit();
    let long = usize::MAX;
    let data = [0_u8].as_ptr().cast::<c_void>();
    let mut size = 0;
    let results = unsafe {
        [
            sosplice_socket(
                layer,
                &table,
                null_mut(),
                0,
                0,
                &raw mut other,
                &raw mut number,
            ),
            sosplice_shutdown(layer, fd, 7),
            sosplice_send(layer, fd, data, long, &raw mut size),
            sosplice_setsockopt(layer, fd, 0, 0, data, long),
            sosplice_ended(layer, fd, 2, result.as_mut_ptr()),
            sosplice_end_append_rcv(end, data, long),
            sosplice_end_disconnected(end, libc::EFBIG),
            sosplice_end_set_error(end, 0),
            sosplice_end_drop_snd(end, 1),
        ]
    };
    for (at, result) in results.into_iter().enumerate() {
        assert_eq!(result, libc::EINVAL, "call {at}");
    }
    assert_eq!(
        (state(end).rcv_closed, calls.take().len()),
        (0, 0),
        "nothing has changed"
    );
    unsafe {
        sosplice_free(layer);
        sosplice_end_free(end);
    }
}

#[test]
fn a_missing_function_and_a_full_table_call_nothing() {
    let config = Config {
        descriptors: 1,
        ..config()
    };
    let layer = layer(&config);
    let (calls, others) = (Calls::default(), Calls::default());
    let (end, fd) = socket(layer, &calls);
    let (mut other, mut number) = (null_mut(), -1);
    let mut make = |table: &Functions| unsafe {
        sosplice_socket(
            layer,
            table,
            others.context(),
            0,
            0,
            &raw mut other,
            &raw mut number,
        )
    };
    assert_eq!(
        make(&Functions {
            output: None,
            ..functions()
        }),
        libc::EFAULT
    );
    assert_eq!(make(&functions()), libc::EMFILE);
    assert_eq!((other, number, others.take().len()), (null_mut(), -1, 0));
    unsafe {
        assert_eq!(sosplice_close(layer, fd), 0);
        assert_eq!(sosplice_close(layer, fd), libc::EBADF);
        assert_eq!(calls.take(), ["detach", "release"]);
        sosplice_end_free(end);
        sosplice_free(layer);
    }
}

#[test]
fn a_protocol_moves_bytes_both_ways() {
    let layer = layer(&config());
    let calls = Calls::default();
    let (end, fd) = socket(layer, &calls);
    let send = |data: &[u8]| {
        let mut count = usize::MAX;
        let data = (data.as_ptr().cast(), data.len());
        (
            unsafe { sosplice_send(layer, fd, data.0, data.1, &raw mut count) },
            count,
        )
    };
    let recv = || {
        let mut bytes = [0_u8; 4];
        let (mut count, into) = (usize::MAX, bytes.as_mut_ptr().cast());
        let result = unsafe { sosplice_recv(layer, fd, into, 4, &raw mut count) };
        (result, bytes[..count].to_vec())
    };
    assert_eq!(send(b"early"), (libc::EAGAIN, 0));
    unsafe { sosplice_end_connected(end) };
    assert_eq!(send(b"hello world"), (0, 10));
    assert_eq!(calls.take(), ["output"]);
    assert_eq!(read_snd(end, 6, 3), b"wor");
    assert_eq!(read_snd(end, 10, 9), b"");
    assert_eq!(unsafe { sosplice_end_drop_snd(end, 4) }, 0);
    assert_eq!((state(end).snd_len, state(end).snd_space), (6, 4));
    append(end, b"answer");
    assert_eq!(
        (
            state(end).rcv_len,
            state(end).rcv_space,
            state(end).rcv_taken
        ),
        (6, 4, 0)
    );
    assert_eq!(recv(), (0, b"answ".to_vec()));
    assert_eq!((calls.take(), state(end).rcv_taken), (vec!["rcvd"], 4));
    unsafe { sosplice_end_disconnected(end, libc::ECONNRESET) };
    assert_eq!(recv(), (0, b"er".to_vec()));
    assert_eq!(recv(), (libc::ECONNRESET, vec![]));
    assert_eq!(recv(), (0, vec![]), "the end");
    assert_eq!(send(b"x"), (libc::EPIPE, 0));
    unsafe {
        assert_eq!(sosplice_abort(layer, fd), 0);
        sosplice_free(layer);
        assert_eq!(calls.take().split_off(1), ["abort", "detach", "release"]);
        sosplice_end_free(end);
    }
}

unsafe extern "C" fn greedy(_: *mut c_void, _: *const c_void, length: usize) -> usize {
    length + 1
}

#[test]
fn a_writer_that_uses_more_than_there_is_is_told() {
    let layer = layer(&config());
    let calls = Calls::default();
    let (end, fd) = socket(layer, &calls);
    let (mut used, data) = (0, b"abc");
    unsafe {
        sosplice_end_connected(end);
        assert_eq!(
            sosplice_send(layer, fd, data.as_ptr().cast(), 3, &raw mut used),
            0
        );
        let read = sosplice_end_read_snd(end, 0, 9, Some(greedy), null_mut(), &raw mut used);
        assert_eq!((read, used), (libc::EINVAL, 3));
        sosplice_free(layer);
        sosplice_end_free(end);
    }
}

/// The ends that `on_end` was called for.
type Ends = Mutex<Vec<(c_int, Ended)>>;

const NO_END: Ended = Ended {
    cause: 0,
    error: 0,
    bytes: 0,
    residual: 0,
    source_id: 0,
};

unsafe extern "C" fn on_end(context: *mut c_void, source: c_int, ended: *const Ended) {
    // SAFETY: the context is the test's list, and the end is valid during the call.
    unsafe {
        let ends: &Ends = context.cast::<Ends>().as_ref().unwrap();
        ends.lock().unwrap().push((source, *ended));
    }
}

#[test]
fn a_splice_by_hand_ends_at_its_limit() {
    let ends = Ends::default();
    let config = Config {
        on_end: Some(on_end),
        context: std::ptr::from_ref(&ends).cast_mut().cast(),
        ..config()
    };
    let layer = layer(&config);
    let (inner, outer) = (Calls::default(), Calls::default());
    let ((source, source_fd), (sink, sink_fd)) = (socket(layer, &inner), socket(layer, &outer));
    unsafe {
        sosplice_end_connected(source);
        sosplice_end_connected(sink);
    }
    let mut result = NO_END;
    let mut how = |fd| unsafe {
        let got = sosplice_ended(layer, fd, SOSPLICE_SOURCE, &raw mut result);
        (got, result.cause)
    };
    assert_eq!(how(source_fd), (libc::EAGAIN, 0));
    assert_eq!(splice(layer, source_fd, 7, 0), libc::EBADF);
    assert_eq!(splice(layer, source_fd, sink_fd, 5), 0);
    assert_eq!(splice(layer, source_fd, sink_fd, 5), libc::EBUSY);
    append(source, b"abcdefg");
    assert_eq!(
        state(sink).snd_len,
        0,
        "nothing moves before the loop runs it"
    );
    assert_eq!(
        unsafe { (sosplice_run(layer), sosplice_run(layer)) },
        (1, 0)
    );
    assert_eq!(read_snd(sink, 0, 99), b"abcde");
    assert!(inner.take().contains(&"rcvd"));
    assert_eq!(outer.take(), ["output"]);
    assert_eq!(how(source_fd), (0, SOSPLICE_LIMIT));
    let mut id = 0;
    assert_eq!(unsafe { sosplice_id(layer, source_fd, &raw mut id) }, 0);
    let end = Ended {
        cause: SOSPLICE_LIMIT,
        bytes: 5,
        residual: 2,
        source_id: id,
        ..NO_END
    };
    assert_eq!(*ends.lock().unwrap(), [(source_fd, end)]);
    let (mut count, mut size) = (0_i64, size_of::<i64>());
    let got = unsafe {
        let (level, name, value) = (
            SOSPLICE_SOL_SOCKET,
            SOSPLICE_SO_SPLICE,
            (&raw mut count).cast(),
        );
        sosplice_getsockopt(layer, source_fd, level, name, value, &raw mut size)
    };
    assert_eq!((got, count, size), (0, 5, 8));
    assert_eq!(splice(layer, source_fd, -1, 0), libc::ENOTCONN);
    unsafe {
        sosplice_free(layer);
        sosplice_end_free(source);
        sosplice_end_free(sink);
    }
}

#[test]
fn a_timer_is_the_timeout_of_the_loop() {
    let layer = layer(&Config {
        flavor: SOSPLICE_OPENBSD,
        ..config()
    });
    let calls = Calls::default();
    let (end, fd) = socket(layer, &calls);
    unsafe { sosplice_end_connected(end) };
    let idle = Splice {
        sp_fd: fd,
        sp_max: 0,
        sp_idle_sec: 600,
        sp_idle_usec: 0,
    };
    let (level, name) = (SOSPLICE_SOL_SOCKET, SOSPLICE_SO_SPLICE);
    unsafe {
        assert_eq!(sosplice_timeout(layer), -1);
        let value = (&raw const idle).cast();
        assert_eq!(
            sosplice_setsockopt(layer, fd, level, name, value, size_of::<Splice>()),
            0
        );
        assert!((1..=600_000).contains(&sosplice_timeout(layer)));
        // The form with an int: that of the sink, which is busy.
        let value = (&raw const fd).cast();
        assert_eq!(
            sosplice_setsockopt(layer, fd, level, name, value, 4),
            libc::EBUSY
        );
        // None at all ends it.
        assert_eq!(sosplice_setsockopt(layer, fd, level, name, null(), 0), 0);
        assert_eq!(
            sosplice_setsockopt(layer, fd, level, name, null(), 0),
            libc::EPROTO
        );
        sosplice_free(layer);
        sosplice_end_free(end);
    }
}

#[test]
fn with_workers_no_loop_is_needed() {
    let layer = layer(&Config {
        workers: 1,
        flags: SOSPLICE_FORWARD_EOF,
        ..config()
    });
    let (inner, outer) = (Calls::default(), Calls::default());
    let ((source, source_fd), (sink, sink_fd)) = (socket(layer, &inner), socket(layer, &outer));
    unsafe {
        sosplice_end_connected(source);
        sosplice_end_connected(sink);
        assert_eq!((sosplice_run(layer), sosplice_timeout(layer)), (-1, -1));
    }
    assert_eq!(splice(layer, source_fd, sink_fd, 0), 0);
    append(source, b"abc");
    unsafe { sosplice_end_cantrcvmore(source) };
    while state(sink).snd_closed == 0 {
        std::thread::yield_now();
    }
    assert_eq!(read_snd(sink, 0, 99), b"abc");
    unsafe {
        sosplice_free(layer);
        sosplice_end_free(source);
        sosplice_end_free(sink);
    }
    // The worker may still hold the splice, and with it both protocols.
    for calls in [&inner, &outer] {
        while calls.0.lock().unwrap().last() != Some(&"release") {
            std::thread::yield_now();
        }
    }
}

/// A loop that sends, and drops what was acknowledged, beside one that gives up.
#[test]
fn dropping_and_flushing_in_several_threads() {
    let calls = Calls::default();
    let layer = layer(&config());
    let (end, fd) = socket(layer, &calls);
    assert_eq!(unsafe { sosplice_end_connected(end) }, 0);
    // SAFETY: both may be used from any thread, and are freed after all.
    let (shared_end, shared_layer) = unsafe { (end.as_ref().unwrap(), layer.as_ref().unwrap()) };
    let times = || 0..20_000;
    std::thread::scope(|scope| {
        let spawn = |work: fn(&End, &Layer, c_int)| {
            let work = move || times().for_each(|_| work(shared_end, shared_layer, fd));
            let thread = std::thread::Builder::new();
            thread.spawn_scoped(scope, work).unwrap();
        };
        spawn(|_, layer, fd| {
            let mut count = 0;
            let sent = unsafe { sosplice_send(layer, fd, b"x".as_ptr().cast(), 1, &raw mut count) };
            assert!([0, libc::EAGAIN].contains(&sent), "{sent}");
        });
        spawn(|end, _, _| assert_eq!(unsafe { sosplice_end_flush_snd(end) }, 0));
        for _ in 0..2 {
            spawn(|end, _, _| {
                let dropped = unsafe { sosplice_end_drop_snd(end, 1) };
                assert!([0, libc::EINVAL].contains(&dropped), "{dropped}");
            });
        }
    });
    unsafe {
        sosplice_free(layer);
        sosplice_end_free(end);
    }
}
