//! Resource limits of the system, and recovery from them: descriptors, threads, mappings.
//!
//! Limits are those of a whole process, so each test runs in one of its own: this program again, with
//! that one test. The crate's own limits are tested elsewhere.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sosplice::buf::{Buf, MAX_FRAME, frames_in_use, pooled_bytes};
use sosplice::kernel::KernelStream;
use sosplice::link::memory;
use sosplice::splice::{Cause, Options, SpliceError, SplicePool};
use sosplice::stack::BuildError;
use sosplice::{Stack, TcpListener, TcpStream, local};
use std::fs;
use std::io::{Read, Write};
use std::process::Command;
use std::time::Duration;

const LIMIT: Option<Duration> = Some(Duration::from_secs(30));

/// Runs `test` in a process that has nothing else to do.
fn alone(name: &str, test: impl FnOnce()) {
    const MARK: &str = "SOSPLICE_ALONE";
    if std::env::var_os(MARK).is_some() {
        return test();
    }
    let mut again = Command::new(std::env::current_exe().unwrap());
    again.args([name, "--exact", "--nocapture"]).env(MARK, "1");
    let output = again.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {said}", output.status);
    let ran = String::from_utf8_lossy(&output.stdout).contains("1 passed");
    assert!(ran, "there is no test {name}");
}

/// Runs `work` with `used` as the limit of `what`.
fn with_no_more<R>(what: Resource, used: u64, work: impl FnOnce() -> R) -> R {
    let before = getrlimit(what);
    let current = Some(used);
    setrlimit(what, Rlimit { current, ..before }).unwrap();
    let result = work();
    setrlimit(what, before).unwrap();
    result
}

fn without_descriptors<R>(work: impl FnOnce() -> R) -> R {
    // All are used up to the limit: the next one would be the first that is free.
    let next = fs::File::open("/dev/null").unwrap();
    let used = u64::try_from(rustix::fd::AsRawFd::as_raw_fd(&next)).unwrap();
    drop(next);
    with_no_more(Resource::Nofile, used, work)
}

/// A thread's stack is 2 MiB; little is left for anything else.
fn without_threads<R>(work: impl FnOnce() -> R) -> R {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = statm.split(' ').next().unwrap().parse().unwrap();
    with_no_more(Resource::As, (pages << 12) + (1 << 20), work)
}

fn stack_of(link: memory::MemoryLink, address: &str, buffer: usize) -> Result<Stack, BuildError> {
    let builder = Stack::builder(link).address(address.parse().unwrap());
    builder.receive_buffer(buffer).send_buffer(buffer).build()
}

fn stacks(buffer: usize) -> (Stack, Stack) {
    let (left, right) = memory::pair(memory::Config::default());
    let left = stack_of(left, "10.0.0.1/24", buffer).unwrap();
    (left, stack_of(right, "10.0.0.2/24", buffer).unwrap())
}

/// A connection that carries bytes.
fn connection(server: &Stack, client: &Stack) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(server, "10.0.0.1:0").unwrap();
    let near = TcpStream::connect(client, listener.local_addr()).unwrap();
    let (far, _) = listener.accept().unwrap();
    far.set_read_timeout(LIMIT).unwrap();
    (&near).write_all(&[7; 100_000]).unwrap();
    let mut bytes = vec![0; 100_000];
    (&far).read_exact(&mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 7));
    (far, near)
}

#[test]
fn a_kernel_socket_is_refused_while_there_is_no_descriptor_and_taken_later() {
    let name = "a_kernel_socket_is_refused_while_there_is_no_descriptor_and_taken_later";
    alone(name, || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let pair = || {
            (
                std::net::TcpStream::connect(address).unwrap(),
                listener.accept().unwrap().0,
            )
        };
        let (one, other) = (pair(), pair());
        // The first of all: there is no thread for them yet.
        let error = without_descriptors(|| KernelStream::from_std(one.1).unwrap_err());
        let emfile = rustix::io::Errno::MFILE.raw_os_error();
        assert_eq!(error.raw_os_error(), Some(emfile), "{error}");
        let error = without_descriptors(|| KernelStream::start(address).unwrap_err());
        assert_eq!(error.raw_os_error(), Some(emfile), "{error}");
        let kernel = KernelStream::from_std(other.1).unwrap();
        (&other.0).write_all(b"taken").unwrap();
        assert_eq!(kernel.recv_chain(5).unwrap().to_vec(), b"taken");
    });
}

#[test]
fn a_pool_whose_threads_do_not_start_has_them_later() {
    alone("a_pool_whose_threads_do_not_start_has_them_later", || {
        let pool = SplicePool::builder().workers(4).build();
        let options = || Options::default().pool(pool.clone());
        let ((a, b), (c, d)) = (local::pair(), local::pair());
        let refused = without_threads(|| b.splice_to(&c, options()).unwrap_err());
        assert!(matches!(refused, SpliceError::Threads(_)), "{refused}");
        // Both are unchanged.
        a.send(b"untouched").unwrap();
        assert_eq!(b.recv_chain(9).unwrap().to_vec(), b"untouched");
        assert_eq!(pool.stats().started, 0);
        // Every worker has a thread: each of these is on another one.
        for _ in 0..4 {
            let ((a, b), (c, d)) = (local::pair(), local::pair());
            let splice = b.splice_to(&c, options()).unwrap();
            a.send(b"carried").unwrap();
            d.set_read_timeout(LIMIT).unwrap();
            assert_eq!(d.recv_chain(7).unwrap().to_vec(), b"carried");
            drop(a);
            let end = splice.wait_timeout(Duration::from_secs(30)).unwrap();
            assert_eq!((end.cause, end.bytes), (Cause::Eof, 7));
        }
        drop((c, d));
    });
}

#[test]
fn a_stack_whose_thread_does_not_start_is_not_built() {
    alone("a_stack_whose_thread_does_not_start_is_not_built", || {
        let (left, right) = memory::pair(memory::Config::default());
        let refused = without_threads(|| stack_of(left, "10.0.0.1/24", 65_536).unwrap_err());
        assert!(matches!(refused, BuildError::Thread(_)), "{refused}");
        // Its link was dropped with it, so the other end is notified.
        let other = stack_of(right, "10.0.0.2/24", 65_536).unwrap();
        let error = TcpStream::connect(&other, "10.0.0.1:80").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NetworkDown);
        let (server, client) = stacks(65_536);
        drop(connection(&server, &client));
    });
}

#[test]
fn the_pools_keep_no_more_free_memory_than_their_bound() {
    alone(
        "the_pools_keep_no_more_free_memory_than_their_bound",
        || {
            let bound = (256 << 12) + (2048 << 11) + (16_384 << 9) + (MAX_FRAME << 9);
            for _ in 0..2 {
                for size in [200, 2000, 10_000, 60_000] {
                    let all: Vec<Buf> = (0..5000).map(|_| Buf::copy_of(&vec![1; size])).collect();
                    assert_eq!(frames_in_use(), 5000);
                    drop(all);
                }
                assert_eq!((pooled_bytes(), frames_in_use()), (bound, 0));
            }
        },
    );
}
