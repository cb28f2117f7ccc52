//! A layer of system calls: descriptors, options, and the pool of the splices.

use crate::end::End;
use crate::number::{Number, border};
use crate::protocol::{Foreign, Functions};
use crate::{bytes, copy_out, reference, store};
use libc::c_int;
use sosplice::Socket;
use sosplice::clock::{Clock, SystemClock};
use sosplice::error::Flavor;
use sosplice::protocol::SocketEnd;
use sosplice::sockbuf::DEFAULT_HIWAT;
use sosplice::sockopt::{self, Abi, Descriptors, Layout, Rights, SockoptError, Table};
use sosplice::splice::{Cause, Dispatch, Options, Role, SplicePool};
use std::ffi::c_void;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::sync::Arc;

/// `flavor`: everything is as in FreeBSD.
pub const SOSPLICE_FREEBSD: c_int = 0;
/// `flavor`: everything is as in OpenBSD.
pub const SOSPLICE_OPENBSD: c_int = 1;

/// `layout`: the option's bytes are those of a 64-bit program, `struct sosplice_splice`.
pub const SOSPLICE_LP64: c_int = 0;
/// `layout`: the option's bytes are those of a 32-bit program.
pub const SOSPLICE_ILP32: c_int = 1;

/// `flags`: when the source's stream has ended and its last byte was moved, shut the sink down for writing.
/// Neither kernel does.
pub const SOSPLICE_FORWARD_EOF: u32 = 1;
/// `flags`: when one socket of a splice has failed, abort the other one. Neither kernel does.
pub const SOSPLICE_FORWARD_RESET: u32 = 2;

/// The level of both options: `SOL_SOCKET` of the BSDs.
pub const SOSPLICE_SOL_SOCKET: c_int = 0xffff;
/// `SO_SPLICE`: set to splice and to end a splice, read for the number of bytes (an `int64_t`).
pub const SOSPLICE_SO_SPLICE: c_int = 0x1023;
/// `SO_ERROR`: reads and clears the socket's error (an `int`, a number of the flavor's system).
pub const SOSPLICE_SO_ERROR: c_int = 0x1007;

/// The socket that bytes come from.
pub const SOSPLICE_SOURCE: c_int = 0;
/// The socket that bytes go to.
pub const SOSPLICE_SINK: c_int = 1;

/// The splice was ended by `SO_SPLICE` with a negative descriptor.
pub const SOSPLICE_UNSPLICED: c_int = 0;
/// The limit is reached.
pub const SOSPLICE_LIMIT: c_int = 1;
/// No byte has moved for the idle time (OpenBSD's meaning of the timeout).
pub const SOSPLICE_IDLE: c_int = 2;
/// Its lifetime is over (FreeBSD's meaning of the timeout).
pub const SOSPLICE_LIFETIME: c_int = 3;
/// The source's stream has ended, and all bytes were moved.
pub const SOSPLICE_EOF: c_int = 4;
/// The source has failed, with `error`, and all received bytes were moved.
pub const SOSPLICE_SOURCE_ERROR: c_int = 5;
/// The source's last descriptor was closed.
pub const SOSPLICE_SOURCE_CLOSED: c_int = 6;
/// The sink was shut down for writing.
pub const SOSPLICE_SINK_SHUTDOWN: c_int = 7;
/// The sink has failed, with `error`.
pub const SOSPLICE_SINK_ERROR: c_int = 8;
/// The sink's last descriptor was closed.
pub const SOSPLICE_SINK_CLOSED: c_int = 9;
/// `sosplice_free` was called.
pub const SOSPLICE_POOL_CLOSED: c_int = 10;
/// The splices form a ring (only in the OpenBSD flavor).
pub const SOSPLICE_LOOP: c_int = 11;
/// Another cause, of a later version.
pub const SOSPLICE_OTHER: c_int = 12;

/// The value of `SO_SPLICE` in the layout `SOSPLICE_LP64`: `struct splice` of FreeBSD and OpenBSD on 64-bit
/// machines. A shorter value is an `int` in the OpenBSD flavor, the sink's descriptor.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[expect(
    clippy::exhaustive_structs,
    reason = "its layout is that of the kernels"
)]
pub struct Splice {
    /// The sink's descriptor; negative to end the splice.
    pub sp_fd: c_int,
    /// Ends after exactly this many bytes; 0 for no limit.
    pub sp_max: i64,
    /// The timeout, 0 and 0 for none: `tv_sec`. In FreeBSD the splice ends after this time, in OpenBSD when no byte
    /// has moved for so long.
    pub sp_idle_sec: i64,
    /// Its microseconds, 0 to 999999: `tv_usec`.
    pub sp_idle_usec: i64,
}

/// How a splice has ended.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::exhaustive_structs, reason = "C programs read it")]
pub struct Ended {
    /// `SOSPLICE_EOF` and so on.
    pub cause: c_int,
    /// The error, with `SOSPLICE_SOURCE_ERROR` and `SOSPLICE_SINK_ERROR`; otherwise 0.
    pub error: c_int,
    /// Bytes moved from the source to the sink.
    pub bytes: u64,
    /// Bytes left on the source: they can be read there.
    pub residual: usize,
    /// `sosplice_id` of the source; 0 in `sosplice_ended` for the sink.
    pub source_id: u64,
}

/// The settings of a layer. Set all bytes to 0, then `size` and what is to differ.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
#[expect(
    clippy::exhaustive_structs,
    reason = "C programs fill it in; `size` tells versions apart"
)]
pub struct Config {
    /// `sizeof(struct sosplice_config)`.
    pub size: usize,
    /// `SOSPLICE_FREEBSD` or `SOSPLICE_OPENBSD`: the system whose rules options, splices and reads follow.
    pub flavor: c_int,
    /// `SOSPLICE_LP64` or `SOSPLICE_ILP32`: the layout of the value of `SO_SPLICE`.
    pub layout: c_int,
    /// Number of worker threads, up to 1024, on which all splices move their bytes. 0 for none: then the program's own loop
    /// calls `sosplice_run`.
    pub workers: usize,
    /// Maximum number of open descriptors; 0 for 65536. More are EMFILE.
    pub descriptors: usize,
    /// Maximum number of splices at a time; 0 for 131072. More are ENOBUFS.
    pub splices: usize,
    /// `SOSPLICE_FORWARD_EOF` and `SOSPLICE_FORWARD_RESET`, combined with `|`, for all splices.
    pub flags: u32,
    /// Called once for each splice that has ended, when the protocol of the sink was told of the last bytes; may be
    /// null. `source` is the descriptor that the splice was set up with; if the program closes descriptors before
    /// their splices have ended, it may be that of another socket by now, with another `source_id`.
    ///
    /// Called from the thread that ends the splice (a worker, or any thread inside a function of this header), with
    /// no lock held. It may call all functions of this header except `sosplice_free`, and must not wait. While one
    /// call is running in a thread, further ones in the same thread are delayed until it has returned.
    pub on_end:
        Option<unsafe extern "C" fn(context: *mut c_void, source: c_int, ended: *const Ended)>,
    /// For `on_end`. It has to stay until `sosplice_free` was called and all splices have ended.
    pub context: *mut c_void,
}

/// A layer of system calls: a table of descriptors, and the pool of its splices. All functions may be called from any
/// thread, from several at once; none waits.
#[derive(Debug)]
pub struct Layer {
    table: Table,
    abi: Abi,
    pool: SplicePool,
    by_hand: bool,
    defaults: Options,
    on_end: Option<OnEnd>,
}

/// What no program means to exceed: memory is allocated for each worker at once.
const MOST_WORKERS: usize = 1024;

/// The program's function for ends.
#[derive(Debug, Clone, Copy)]
struct OnEnd {
    call: unsafe extern "C" fn(*mut c_void, c_int, *const Ended),
    context: *mut c_void,
}

// SAFETY: the documentation of `on_end` asks for a function that can be called from any thread, with this context.
unsafe impl Send for OnEnd {}
// SAFETY: and from several at once.
unsafe impl Sync for OnEnd {}

impl OnEnd {
    fn call(self, source: c_int, ended: &Ended) {
        // SAFETY: the program promised that it can be called with this context.
        unsafe { (self.call)(self.context, source, ended) };
    }
}

impl Layer {
    /// # Errors
    /// `EINVAL` for the settings of another version, and for unknown values.
    fn new(config: &Config) -> Result<Layer, Number> {
        let flavor = match config.flavor {
            SOSPLICE_FREEBSD => Flavor::FreeBsd,
            SOSPLICE_OPENBSD => Flavor::OpenBsd,
            _ => return Err(Number(libc::EINVAL)),
        };
        let layout = match config.layout {
            SOSPLICE_LP64 => Layout::Lp64,
            SOSPLICE_ILP32 => Layout::Ilp32,
            _ => return Err(Number(libc::EINVAL)),
        };
        let known = SOSPLICE_FORWARD_EOF | SOSPLICE_FORWARD_RESET;
        let fits = config.size == size_of::<Config>() && config.workers <= MOST_WORKERS;
        if !fits || config.flags & !known != 0 {
            return Err(Number(libc::EINVAL));
        }
        let or = |value, default| if value == 0 { default } else { value };
        let by_hand = config.workers == 0;
        let builder = SplicePool::builder()
            .workers(or(config.workers, 1))
            .max_splices(or(config.splices, 131_072))
            .dispatch(Dispatch::Worker);
        let pool = if by_hand { builder.manual() } else { builder }.build();
        let flag = |flag| config.flags & flag != 0;
        let call = config.on_end;
        Ok(Layer {
            table: Table::new(or(config.descriptors, 65_536)),
            abi: Abi { flavor, layout },
            by_hand,
            defaults: Options::default()
                .pool(pool.clone())
                .forward_eof(flag(SOSPLICE_FORWARD_EOF))
                .forward_reset(flag(SOSPLICE_FORWARD_RESET)),
            pool,
            on_end: call.map(|call| OnEnd {
                call,
                context: config.context,
            }),
        })
    }

    /// The socket with this descriptor, for Rust code in the same program.
    pub fn socket(&self, fd: c_int) -> Option<Socket> {
        self.get(fd).ok()
    }

    fn get(&self, fd: c_int) -> Result<Socket, Number> {
        let socket = self.table.get(fd, Rights::empty());
        socket.map_err(|error| error.errno().into())
    }

    fn number(&self, error: SockoptError) -> Number {
        error.errno(self.abi.flavor).into()
    }

    fn set(&self, fd: c_int, option: (c_int, c_int), value: Option<&[u8]>) -> Result<(), Number> {
        let (table, abi, defaults) = (&self.table, self.abi, &self.defaults);
        if option != (SOSPLICE_SOL_SOCKET, SOSPLICE_SO_SPLICE) {
            let set = sockopt::setsockopt(table, fd, option.0, option.1, value, abi, defaults);
            return set.map_err(|error| self.number(error));
        }
        // For its number only: if the descriptor is replaced meanwhile, so is the socket.
        let source = self.get(fd)?;
        let set = sockopt::set_splice(table, fd, value, abi, defaults);
        let splice = set.map_err(|error| self.number(error))?;
        if let (Some(splice), Some(on_end)) = (splice, self.on_end) {
            let id = source.end().id();
            splice.on_end(move |end| on_end.call(fd, &ended(&end, id)));
        }
        Ok(())
    }
}

/// The end of a splice in C.
fn ended(end: &sosplice::splice::End, source_id: u64) -> Ended {
    let (cause, error) = match end.cause {
        Cause::Unspliced => (SOSPLICE_UNSPLICED, None),
        Cause::Limit => (SOSPLICE_LIMIT, None),
        Cause::Idle => (SOSPLICE_IDLE, None),
        Cause::Lifetime => (SOSPLICE_LIFETIME, None),
        Cause::Eof => (SOSPLICE_EOF, None),
        Cause::SourceError(error) => (SOSPLICE_SOURCE_ERROR, Some(error)),
        Cause::SourceClosed => (SOSPLICE_SOURCE_CLOSED, None),
        Cause::SinkShutdown => (SOSPLICE_SINK_SHUTDOWN, None),
        Cause::SinkError(error) => (SOSPLICE_SINK_ERROR, Some(error)),
        Cause::SinkClosed => (SOSPLICE_SINK_CLOSED, None),
        Cause::PoolClosed => (SOSPLICE_POOL_CLOSED, None),
        Cause::Loop => (SOSPLICE_LOOP, None),
        _ => (SOSPLICE_OTHER, None),
    };
    Ended {
        cause,
        error: error.map_or(0, |error| Number::from(error).0),
        bytes: end.bytes,
        residual: end.residual,
        source_id,
    }
}

/// Makes a layer and stores it in `made`; it is freed by `sosplice_free`. Worker threads start with the first
/// splice.
///
/// Returns 0; EFAULT for a null pointer; EINVAL if `size` is not that of this header's struct, for an unknown value,
/// or for too many workers.
///
/// # Safety
/// `config` is null or settings; `on_end` is as it is asked for there; `made` is null or memory for a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_new(config: *const Config, made: *mut *mut Layer) -> c_int {
    border(|| {
        // SAFETY: the caller's promise.
        let config = unsafe { reference(config)? };
        if made.is_null() {
            return Err(Number(libc::EFAULT));
        }
        let layer = Box::new(Layer::new(config)?);
        // SAFETY: the caller's promise.
        unsafe { store(made, Box::into_raw(layer)) }
    })
}

/// Closes all descriptors, ends all splices, and frees the layer. Does not wait for the worker threads: functions of
/// protocols may be called until each context had its `release`. A null pointer is ignored. `on_end`, in any thread, is
/// a user of the layer too: where it calls functions with it, the program first ends all splices, and waits for their ends.
///
/// # Safety
/// `layer` is null or not freed, and no other thread uses it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_free(layer: *mut Layer) {
    let free = || {
        if !layer.is_null() {
            // SAFETY: made by `Box::into_raw` in `sosplice_new`; the caller promises that it is freed once.
            drop(unsafe { Box::from_raw(layer) });
        }
        Ok(())
    };
    border(free);
}

/// Makes a socket over a protocol, gives it a descriptor of this layer, and stores both: the descriptor in `fd`, the
/// protocol's side in `end`. (These descriptors are numbers of the layer, the lowest free one from 0 on, and not the
/// operating system's.)
///
/// `rcv_hiwat` and `snd_hiwat` are the sizes of both buffers in bytes; 0 for 262144. It is not connected before
/// `sosplice_end_connected`, but can be spliced.
///
/// The functions of the table may be called as soon as another thread knows the descriptor, so the context must be
/// able to bear it. `release` is called when they are called no more. If this function fails, none is called, and
/// nothing is stored.
///
/// Returns 0; EFAULT for a null pointer, or if a function of the table is missing; EINVAL if `size` is not that of this
/// header's struct, or the name is not UTF-8; EMFILE if all descriptors are in use.
///
/// # Safety
/// `layer` is null or not freed; `protocol` is null or a table as it is asked for there; `end` and `fd` are null or
/// memory for the results.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_socket(
    layer: *const Layer,
    protocol: *const Functions,
    context: *mut c_void,
    rcv_hiwat: usize,
    snd_hiwat: usize,
    end: *mut *mut End,
    fd: *mut c_int,
) -> c_int {
    border(|| {
        // SAFETY: the caller's promise.
        let (layer, table) = unsafe { (reference(layer)?, reference(protocol)?) };
        if end.is_null() || fd.is_null() {
            return Err(Number(libc::EFAULT));
        }
        // SAFETY: the caller's promise.
        let foreign = Arc::new(unsafe { Foreign::new(table, context)? });
        let or = |value| if value == 0 { DEFAULT_HIWAT } else { value };
        let own = SocketEnd::new(or(rcv_hiwat), or(snd_hiwat));
        own.set_flavor(layer.abi.flavor);
        let socket = Socket::new(own.clone(), foreign.clone());
        socket.set_nonblocking(true);
        let number = layer.table.insert(socket);
        let number = number.map_err(|error| Number::from(error.errno()))?;
        // SAFETY: not null, and the caller's promise.
        unsafe {
            store(end, Box::into_raw(Box::new(End(own))))?;
            store(fd, number)?;
        }
        foreign.arm();
        Ok(())
    })
}

/// Stores a number in `id` that no other socket of this process has or had.
///
/// Returns 0; EFAULT for a null pointer; EBADF.
///
/// # Safety
/// `layer` is null or not freed; `id` is null or memory for the result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_id(layer: *const Layer, fd: c_int, id: *mut u64) -> c_int {
    border(|| {
        // SAFETY: the caller's promise.
        let socket = unsafe { reference(layer)? }.get(fd)?;
        // SAFETY: the caller's promise.
        unsafe { store(id, socket.end().id()) }
    })
}

/// Closes a descriptor, and with it the socket: its splices end, and the protocol's `detach` is called in this
/// thread.
///
/// Returns 0; EFAULT for a null pointer; EBADF.
///
/// # Safety
/// `layer` is null or not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_close(layer: *const Layer, fd: c_int) -> c_int {
    border(|| {
        // SAFETY: the caller's promise.
        let layer = unsafe { reference(layer)? };
        let closed = layer.table.close(fd);
        closed.map_err(|error| error.errno().into())
    })
}

/// Ends a connection at once, and notifies the peer (a reset). The descriptor stays open.
///
/// Returns 0; EFAULT for a null pointer; EBADF.
///
/// # Safety
/// `layer` is null or not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_abort(layer: *const Layer, fd: c_int) -> c_int {
    border(|| {
        // SAFETY: the caller's promise.
        unsafe { reference(layer)? }.get(fd)?.abort();
        Ok(())
    })
}

/// Ends one or both directions of a connection; `how` is SHUT_RD, SHUT_WR or SHUT_RDWR of `<sys/socket.h>`. The peer
/// still gets the bytes that were sent before.
///
/// Returns 0; EFAULT for a null pointer; EBADF; EINVAL for another `how`.
///
/// # Safety
/// `layer` is null or not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_shutdown(layer: *const Layer, fd: c_int, how: c_int) -> c_int {
    border(|| {
        // SAFETY: the caller's promise.
        let socket = unsafe { reference(layer)? }.get(fd)?;
        let how = match how {
            libc::SHUT_RD => Shutdown::Read,
            libc::SHUT_WR => Shutdown::Write,
            libc::SHUT_RDWR => Shutdown::Both,
            _ => return Err(Number(libc::EINVAL)),
        };
        socket.shutdown(how).map_err(|error| io_number(&error))
    })
}

/// Reads up to `length` bytes, without waiting, and stores their number in `count`: 0 at the end of the stream, and if
/// the call fails.
///
/// Returns 0; EFAULT for a null pointer (`data` may be null if `length` is 0); EBADF; EAGAIN if there are no bytes; once,
/// the error that has ended the connection.
///
/// # Safety
/// `layer` is null or not freed; there are `length` bytes of memory at `data`; `count` is null or memory for the
/// result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_recv(
    layer: *const Layer,
    fd: c_int,
    data: *mut c_void,
    length: usize,
    count: *mut usize,
) -> c_int {
    border(|| {
        // SAFETY: the caller's promise.
        let layer = unsafe { reference(layer)? };
        // SAFETY: the caller's promise.
        unsafe { store(count, 0)? };
        if data.is_null() && length > 0 {
            return Err(Number(libc::EFAULT));
        }
        let received = layer.get(fd)?.recv_chain(length);
        let received = received.map_err(|error| io_number(&error))?;
        // SAFETY: the caller's promise.
        unsafe {
            copy_out(received.iter().map(|buf| &buf[..]), data, length)?;
            store(count, received.len())
        }
    })
}

/// Sends as many of `length` bytes as fit into the send buffer, without waiting, and stores their number in `count`: 0 if
/// the call fails.
///
/// Returns 0; EFAULT for a null pointer; EBADF; EAGAIN if none fits, or the connection is not established yet;
/// EPIPE; the error that has ended the connection; EINVAL for a length above half of the address space.
///
/// # Safety
/// `layer` is null or not freed; `data` points to `length` bytes; `count` is null or memory for the result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_send(
    layer: *const Layer,
    fd: c_int,
    data: *const c_void,
    length: usize,
    count: *mut usize,
) -> c_int {
    border(|| {
        // SAFETY: the caller's promise.
        let (layer, data) = unsafe { (reference(layer)?, bytes(data, length)?) };
        // SAFETY: the caller's promise.
        unsafe { store(count, 0)? };
        let sent = layer.get(fd)?.send(data);
        let sent = sent.map_err(|error| io_number(&error))?;
        // SAFETY: the caller's promise.
        unsafe { store(count, sent) }
    })
}

/// `setsockopt`. The option `SOSPLICE_SO_SPLICE` of level `SOSPLICE_SOL_SOCKET` splices the source `fd` to the sink
/// that the value names, or ends its splice; its bytes are those of FreeBSD or OpenBSD (`struct sosplice_splice`, in
/// OpenBSD also an `int`, or nothing to end it). Bytes that are queued
/// already are moved in this call.
///
/// Returns 0, or the error of that system: EBADF, EINVAL, ENOTCONN, EBUSY, EPROTO, EPROTONOSUPPORT, EOPNOTSUPP,
/// ENOBUFS, ENOPROTOOPT; EAGAIN if no thread could be started. EFAULT for a null `layer`, or a null `value` with a
/// `length` that is not 0.
///
/// # Safety
/// `layer` is null or not freed; `value` points to `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_setsockopt(
    layer: *const Layer,
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *const c_void,
    length: usize,
) -> c_int {
    border(|| {
        // SAFETY: the caller's promise.
        let (layer, bytes) = unsafe { (reference(layer)?, bytes(value, length)?) };
        let value = (!value.is_null()).then_some(bytes);
        layer.set(fd, (level, name), value)
    })
}

/// `getsockopt`: `SOSPLICE_SO_SPLICE` has the number of bytes that the latest splice of the source `fd` has moved,
/// an `int64_t`; `SOSPLICE_SO_ERROR` reads and clears the socket's error, an `int`, whose number is that of the
/// flavor's system. `length` is the size of the memory at `value`, then the number of bytes stored there: as many as
/// fit.
///
/// Returns 0; EFAULT for a null pointer; EBADF; ENOPROTOOPT.
///
/// # Safety
/// `layer` is null or not freed; `length` is null or points to a length; at `value` there are as many bytes of
/// memory.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_getsockopt(
    layer: *const Layer,
    fd: c_int,
    level: c_int,
    name: c_int,
    value: *mut c_void,
    length: *mut usize,
) -> c_int {
    border(|| {
        // SAFETY: the caller's promise.
        let (layer, size) = unsafe { (reference(layer)?, *reference(length)?) };
        if value.is_null() && size > 0 {
            return Err(Number(libc::EFAULT));
        }
        // The longest value is a count of bytes.
        let mut result = [0; size_of::<i64>()];
        let out = &mut result[..size.min(size_of::<i64>())];
        let stored = sockopt::getsockopt(&layer.table, fd, level, name, out, layer.abi);
        let stored = stored.map_err(|error| layer.number(error))?;
        // SAFETY: the caller's promise.
        unsafe {
            copy_out(std::iter::once(&result[..stored]), value, size)?;
            store(length, stored)
        }
    })
}

/// How the latest splice of the socket `fd` in this role (`SOSPLICE_SOURCE`, `SOSPLICE_SINK`) has ended.
///
/// Returns 0; EFAULT for a null pointer; EBADF; EINVAL for another role; EAGAIN while it lasts, and before the first
/// one.
///
/// # Safety
/// `layer` is null or not freed; `result` is null or memory for the result.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_ended(
    layer: *const Layer,
    fd: c_int,
    role: c_int,
    result: *mut Ended,
) -> c_int {
    border(|| {
        // SAFETY: the caller's promise.
        let socket = unsafe { reference(layer)? }.get(fd)?;
        let (role, id) = match role {
            SOSPLICE_SOURCE => (Role::Source, socket.end().id()),
            SOSPLICE_SINK => (Role::Sink, 0),
            _ => return Err(Number(libc::EINVAL)),
        };
        let end = socket.splice_end(role).ok_or(Number(libc::EAGAIN))?;
        // SAFETY: the caller's promise.
        unsafe { store(result, ended(&end, id)) }
    })
}

/// For a layer without worker threads: runs one pass of a splice, or fires one timer. Call it until it returns 0, after
/// each batch of other work, before the loop sleeps. Any thread may call it; which one moves the bytes then.
///
/// Passes become due by calls of `sosplice_end_append_rcv` and its like, and of the descriptors' functions. If other
/// threads than the loop's make such calls, they must wake the loop themselves.
///
/// Returns 1 if there was something to do, 0 if not, and -1 for a null pointer or a layer with worker threads.
///
/// # Safety
/// `layer` is null or not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_run(layer: *const Layer) -> c_int {
    let mut worked = -1;
    border(|| {
        // SAFETY: the caller's promise.
        let layer = unsafe { reference(layer)? };
        if layer.by_hand {
            worked = layer.pool.run_one().into();
        }
        Ok(())
    });
    worked
}

/// For a layer without worker threads: milliseconds, rounded up, until `sosplice_run` has a timer to fire; -1 if there
/// is none (the timeout of `poll`).
///
/// # Safety
/// `layer` is null or not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sosplice_timeout(layer: *const Layer) -> c_int {
    let mut timeout = -1;
    border(|| {
        // SAFETY: the caller's promise.
        let layer = unsafe { reference(layer)? };
        if let Some(at) = layer.pool.poll_at() {
            let left = at.saturating_duration_since(SystemClock.now());
            let millis = left.as_nanos().div_ceil(1_000_000);
            timeout = c_int::try_from(millis).unwrap_or(c_int::MAX);
        }
        Ok(())
    });
    timeout
}

/// The number of an error of a socket's call.
fn io_number(error: &io::Error) -> Number {
    let inside = error.get_ref().and_then(|inside| inside.downcast_ref());
    if let Some(error) = inside {
        let error: &sosplice::error::SoError = error;
        return Number::from(*error);
    }
    Number(match error.kind() {
        ErrorKind::WouldBlock => libc::EAGAIN,
        _ => libc::EIO,
    })
}
