/* sosplice.h: BSD socket splicing (SO_SPLICE) for TCP stacks, in C.

   Made from include/src by cbindgen; do not edit. Build with

       cargo build --release -p sosplice-c
       cc program.c -Iinclude target/release/libsosplice_c.a -lpthread -lm -ldl

   Two sides
     A TCP stack is a *protocol*: a table of functions (struct sosplice_protocol) that the library calls when there
     are bytes to send or the window may open. For each connection it makes a socket (sosplice_socket) and holds its
     side of that (struct sosplice_end): it appends received bytes to the receive buffer, sends the bytes of the send
     buffer, and drops them when they are acknowledged.
     The program has descriptors of a layer (struct sosplice), and splices them by setsockopt with the bytes of
     FreeBSD or OpenBSD. Sockets of several stacks may be in one layer.

   Errors
     Functions return 0 or a number of <errno.h>. Null pointers are EFAULT, wrong lengths and values EINVAL. A call
     that fails has changed nothing. ENOTRECOVERABLE is a defect of the library: a panic, which does not leave it.

   Ownership
     sosplice_new .. sosplice_free, and sosplice_socket .. sosplice_close. A struct sosplice_end is the protocol's,
     from sosplice_socket to sosplice_end_free, and outlives the descriptor. The context of a protocol's functions
     has to live until its release() was called: that is the last call.

   Threads and locks
     All functions may be called from any thread, and none waits. The library holds no lock while it calls a function
     of the program, so each may call the library again. In return the program's functions must not take a lock that
     a thread holds while it calls the library. Worker threads block no signals: block them before the first splice
     if a certain thread is to handle them.

   A stack that belongs to one thread (lwIP)
     output(), rcvd(), abort() and detach() are called from worker threads, or from the stack's own thread inside
     sosplice_end_append_rcv() and its like. So they must neither touch the stack, nor take its lock
     (LOCK_TCPIP_CORE): the stack's thread may hold it, and deadlocks. They hand the work over: a flag for each
     connection, a list of connections with flags under a mutex of its own, and a wake-up of the stack's thread (an
     eventfd in a loop of your own; tcpip_callbackmsg_trycallback() with lwIP's thread, and never tcpip_callback(),
     which waits while the mailbox is full). examples/lwip/lwip_socket.c does it.
     With no worker threads (`workers` 0) the stack's thread moves the bytes too: it calls sosplice_run() before it
     sleeps. The functions are the same, and there is no other thread. */


#ifndef SOSPLICE_H
#define SOSPLICE_H

#include <stddef.h>
#include <stdint.h>

// `flavor`: everything is as in FreeBSD.
#define SOSPLICE_FREEBSD 0

// `flavor`: everything is as in OpenBSD.
#define SOSPLICE_OPENBSD 1

// `layout`: the option's bytes are those of a 64-bit program, `struct sosplice_splice`.
#define SOSPLICE_LP64 0

// `layout`: the option's bytes are those of a 32-bit program.
#define SOSPLICE_ILP32 1

// `flags`: when the source's stream has ended and its last byte was moved, shut the sink down for writing.
// Neither kernel does.
#define SOSPLICE_FORWARD_EOF 1

// `flags`: when one socket of a splice has failed, abort the other one. Neither kernel does.
#define SOSPLICE_FORWARD_RESET 2

// The level of both options: `SOL_SOCKET` of the BSDs.
#define SOSPLICE_SOL_SOCKET 65535

// `SO_SPLICE`: set to splice and to end a splice, read for the number of bytes (an `int64_t`).
#define SOSPLICE_SO_SPLICE 4131

// `SO_ERROR`: reads and clears the socket's error (an `int`, a number of the flavor's system).
#define SOSPLICE_SO_ERROR 4103

// The socket that bytes come from.
#define SOSPLICE_SOURCE 0

// The socket that bytes go to.
#define SOSPLICE_SINK 1

// The splice was ended by `SO_SPLICE` with a negative descriptor.
#define SOSPLICE_UNSPLICED 0

// The limit is reached.
#define SOSPLICE_LIMIT 1

// No byte has moved for the idle time (OpenBSD's meaning of the timeout).
#define SOSPLICE_IDLE 2

// Its lifetime is over (FreeBSD's meaning of the timeout).
#define SOSPLICE_LIFETIME 3

// The source's stream has ended, and all bytes were moved.
#define SOSPLICE_EOF 4

// The source has failed, with `error`, and all received bytes were moved.
#define SOSPLICE_SOURCE_ERROR 5

// The source's last descriptor was closed.
#define SOSPLICE_SOURCE_CLOSED 6

// The sink was shut down for writing.
#define SOSPLICE_SINK_SHUTDOWN 7

// The sink has failed, with `error`.
#define SOSPLICE_SINK_ERROR 8

// The sink's last descriptor was closed.
#define SOSPLICE_SINK_CLOSED 9

// `sosplice_free` was called.
#define SOSPLICE_POOL_CLOSED 10

// The splices form a ring (only in the OpenBSD flavor).
#define SOSPLICE_LOOP 11

// Another cause, of a later version.
#define SOSPLICE_OTHER 12

// A stream that is connected, connecting, or disconnected.
#define SOSPLICE_STREAM 0

// A stream that is not connected yet: it cannot be spliced (`ENOTCONN`).
#define SOSPLICE_UNCONNECTED 1

// A listening socket: it cannot be spliced (`EINVAL`, OpenBSD: `EOPNOTSUPP`).
#define SOSPLICE_LISTENING 2

// No stream of bytes: it cannot be spliced (`EPROTONOSUPPORT`).
#define SOSPLICE_NOT_A_STREAM 3

// A protocol's side of a socket. Made by `sosplice_socket`, freed by `sosplice_end_free`; the socket may be closed
// before or after that. All functions on it may be called from any thread, also inside the functions of a
// protocol, and do not wait. They may call functions of protocols, of this one too, and `on_end`.
struct sosplice_end;

// A layer of system calls: a table of descriptors, and the pool of its splices. All functions may be called from any
// thread, from several at once; none waits.
struct sosplice;

// A snapshot of both buffers.
struct sosplice_state {
    // Bytes in the receive buffer, not yet taken by a reader or a splice.
    size_t rcv_len;
    // Bytes that fit below its high-water mark: the window to advertise.
    size_t rcv_space;
    // Bytes taken from it since the socket was made. By the growth of this number a window opens
    // (`tcp_recved`). Bytes that were dropped by `sosplice_end_flush_rcv`, or appended after it, count as taken.
    uint64_t rcv_taken;
    // Not 0 after `sosplice_end_cantrcvmore`, `sosplice_end_disconnected`, or when the program has shut down
    // reading.
    int rcv_closed;
    // Bytes in the send buffer.
    size_t snd_len;
    // Bytes that fit below its high-water mark.
    size_t snd_space;
    // Not 0 when no more bytes come: send what is there, and then the end of the stream.
    int snd_closed;
};

// How a splice has ended.
struct sosplice_ended_splice {
    // `SOSPLICE_EOF` and so on.
    int cause;
    // The error, with `SOSPLICE_SOURCE_ERROR` and `SOSPLICE_SINK_ERROR`; otherwise 0.
    int error;
    // Bytes moved from the source to the sink.
    uint64_t bytes;
    // Bytes left on the source: they can be read there.
    size_t residual;
    // `sosplice_id` of the source; 0 in `sosplice_ended` for the sink.
    uint64_t source_id;
};

// The settings of a layer. Set all bytes to 0, then `size` and what is to differ.
struct sosplice_config {
    // `sizeof(struct sosplice_config)`.
    size_t size;
    // `SOSPLICE_FREEBSD` or `SOSPLICE_OPENBSD`: the system whose rules options, splices and reads follow.
    int flavor;
    // `SOSPLICE_LP64` or `SOSPLICE_ILP32`: the layout of the value of `SO_SPLICE`.
    int layout;
    // Number of worker threads, up to 1024, on which all splices move their bytes. 0 for none: then the program's own loop
    // calls `sosplice_run`.
    size_t workers;
    // Maximum number of open descriptors; 0 for 65536. More are EMFILE.
    size_t descriptors;
    // Maximum number of splices at a time; 0 for 131072. More are ENOBUFS.
    size_t splices;
    // `SOSPLICE_FORWARD_EOF` and `SOSPLICE_FORWARD_RESET`, combined with `|`, for all splices.
    uint32_t flags;
    // Called once for each splice that has ended, when the protocol of the sink was told of the last bytes; may be
    // null. `source` is the descriptor that the splice was set up with; if the program closes descriptors before
    // their splices have ended, it may be that of another socket by now, with another `source_id`.
    //
    // Called from the thread that ends the splice (a worker, or any thread inside a function of this header), with
    // no lock held. It may call all functions of this header except `sosplice_free`, and must not wait. While one
    // call is running in a thread, further ones in the same thread are delayed until it has returned.
    void (*on_end)(void *context, int source, const struct sosplice_ended_splice *ended);
    // For `on_end`. It has to stay until `sosplice_free` was called and all splices have ended.
    void *context;
};

// The functions of a protocol, for all its sockets (BSD's `struct protosw`). The table is copied.
//
// Each function gets the `context` that the socket was made with. It may be called from any thread, from several
// at once, also inside any function of this header; no lock of the library is held, so it may call every function
// on every end. It must not wait, and must not take a lock that a thread holds while it calls this library (the
// core lock of a stack, say). It must return: no `longjmp`, no exception of C++.
//
// If your stack belongs to one thread, as lwIP does, these functions note what is wanted, in a queue with a lock of
// its own, and wake that thread, for example by an `eventfd`; the thread then sends and opens windows.
struct sosplice_protocol {
    // `sizeof(struct sosplice_protocol)`.
    size_t size;
    // The protocol's name, for listings; it has to stay as long as the process. Null is "c".
    const char *name;
    // The send buffer has more bytes, or was closed for writing: send (`pr_send`, `pr_shutdown`). See
    // `sosplice_end_read_snd`. The bytes before the close are still to be delivered, then the end of the stream.
    void (*output)(void *context);
    // Bytes were taken from the receive buffer, so the window may open (`pr_rcvd`): see `rcv_taken` of
    // `struct sosplice_state`. If `idle` is not 0, a reader now waits, and a withheld window update must be sent.
    void (*rcvd)(void *context, int idle);
    // Ends the connection at once and notifies the peer (`pr_abort`, a reset). Before it returns, both buffers are
    // to be closed, by `sosplice_end_disconnected` with `ECONNABORTED`.
    void (*abort)(void *context);
    // The socket was closed (`pr_detach`). If `sosplice_end_flush_rcv` finds unread bytes, or bytes arrive later,
    // the peer gets a reset; otherwise the protocol calls `sosplice_end_cantsendmore` and delivers the rest of the
    // send buffer. Later calls of `output` and `rcvd` are possible.
    void (*detach)(void *context);
    // The last call for this context: none is running any more, and none follows. The protocol may still be
    // delivering bytes; when it is done, it frees its end and the context. May be null.
    void (*release)(void *context);
    // The state of the socket, `SOSPLICE_STREAM` and so on. Null for protocols that make sockets only for
    // connections.
    int (*state)(void *context);
};

// The value of `SO_SPLICE` in the layout `SOSPLICE_LP64`: `struct splice` of FreeBSD and OpenBSD on 64-bit
// machines. A shorter value is an `int` in the OpenBSD flavor, the sink's descriptor.
struct sosplice_splice {
    // The sink's descriptor; negative to end the splice.
    int sp_fd;
    // Ends after exactly this many bytes; 0 for no limit.
    int64_t sp_max;
    // The timeout, 0 and 0 for none: `tv_sec`. In FreeBSD the splice ends after this time, in OpenBSD when no byte
    // has moved for so long.
    int64_t sp_idle_sec;
    // Its microseconds, 0 to 999999: `tv_usec`.
    int64_t sp_idle_usec;
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Reads the state of both buffers, each for itself at one moment.
//
// Returns 0, or EFAULT for a null pointer.
int sosplice_end_state(const struct sosplice_end *end, struct sosplice_state *state);

// The connection is established (`soisconnected`): from now on the program and splices can send.
//
// Returns 0, or EFAULT for a null pointer.
int sosplice_end_connected(const struct sosplice_end *end);

// Appends a copy of received bytes, in order, and wakes a splice or readers (`sbappendstream`, `sorwakeup`). The
// space of the receive buffer is not checked: keeping the peer to the window is up to the protocol.
//
// Returns 0; EFAULT for a null pointer (`data` may be null if `length` is 0); EINVAL for a length above half of
// the address space.
int sosplice_end_append_rcv(const struct sosplice_end *end,
                            const void *data,
                            size_t length);

// The peer will send no more (`socantrcvmore`): readers and a splice find the end of the stream behind the last
// byte.
//
// Returns 0, or EFAULT for a null pointer.
int sosplice_end_cantrcvmore(const struct sosplice_end *end);

// Nothing can be sent any more (`socantsendmore`). Bytes in the send buffer stay.
//
// Returns 0, or EFAULT for a null pointer.
int sosplice_end_cantsendmore(const struct sosplice_end *end);

// The connection has ended (`soisdisconnected`): sets the socket's error, unless `error` is 0, and closes both
// buffers. Received bytes can still be read; those in the send buffer stay (`sosplice_end_flush_snd`).
//
// `error` is ECONNRESET, ECONNREFUSED, ETIMEDOUT, ECONNABORTED, EPIPE, EHOSTUNREACH, ENETDOWN or 0.
//
// Returns 0; EFAULT for a null pointer; EINVAL for another error, without a change.
int sosplice_end_disconnected(const struct sosplice_end *end,
                              int error);

// Sets the socket's error, as `sosplice_end_disconnected` does, but closes nothing and does not wake.
//
// Returns 0; EFAULT for a null pointer; EINVAL for another error, and for 0.
int sosplice_end_set_error(const struct sosplice_end *end, int error);

// No more bytes will be read (`sorflush`): closes the receive buffer and drops what it holds. Stores how many bytes
// that was in `count`, which may be null.
//
// Returns 0, or EFAULT for a null `end`.
int sosplice_end_flush_rcv(const struct sosplice_end *end,
                           size_t *count);

// Drops the bytes in the send buffer, which can no longer be sent.
//
// Returns 0, or EFAULT for a null pointer.
int sosplice_end_flush_snd(const struct sosplice_end *end);

// Shows the bytes of the send buffer from `offset`, at most `max` of them, and leaves them there: calls `write` for
// each piece, in order, until it returns less than the length that it was given. `write` returns how many bytes it
// has used (sent, or copied). The pieces stay valid until `write` returns. It is called with no lock held, before
// this function returns, and may call any function except those that drop bytes of this send buffer.
//
// The protocol keeps `offset`: the number of bytes that it has sent and not yet dropped. Only one thread at a time
// may send for a socket; the others append to the buffer meanwhile.
//
// Stores the sum of what `write` returned in `used`, which may be null; 0 if there is nothing behind `offset`.
//
// Returns 0; EFAULT for a null `end` or `write`; EINVAL if `write` has returned more than the length that it was
// given.
int sosplice_end_read_snd(const struct sosplice_end *end,
                          size_t offset,
                          size_t max,
                          size_t (*write)(void *context, const void *data, size_t length),
                          void *context,
                          size_t *used);

// Drops bytes from the front of the send buffer, which the peer has acknowledged, and wakes a splice or writers
// (`sbdrop`, `sowwakeup`).
//
// Returns 0; EFAULT for a null pointer; EINVAL if there are fewer, without a change.
int sosplice_end_drop_snd(const struct sosplice_end *end,
                          size_t count);

// Frees the protocol's side of a socket. Call it when neither the stack nor a function of the protocol uses it any
// more, at the earliest inside `release`. A null pointer is ignored.
void sosplice_end_free(struct sosplice_end *end);

// Makes a layer and stores it in `made`; it is freed by `sosplice_free`. Worker threads start with the first
// splice.
//
// Returns 0; EFAULT for a null pointer; EINVAL if `size` is not that of this header's struct, for an unknown value,
// or for too many workers.
int sosplice_new(const struct sosplice_config *config,
                 struct sosplice **made);

// Closes all descriptors, ends all splices, and frees the layer. Does not wait for the worker threads: functions of
// protocols may be called until each context had its `release`. A null pointer is ignored. `on_end`, in any thread, is
// a user of the layer too: where it calls functions with it, the program first ends all splices, and waits for their ends.
void sosplice_free(struct sosplice *layer);

// Makes a socket over a protocol, gives it a descriptor of this layer, and stores both: the descriptor in `fd`, the
// protocol's side in `end`. (These descriptors are numbers of the layer, the lowest free one from 0 on, and not the
// operating system's.)
//
// `rcv_hiwat` and `snd_hiwat` are the sizes of both buffers in bytes; 0 for 262144. It is not connected before
// `sosplice_end_connected`, but can be spliced.
//
// The functions of the table may be called as soon as another thread knows the descriptor, so the context must be
// able to bear it. `release` is called when they are called no more. If this function fails, none is called, and
// nothing is stored.
//
// Returns 0; EFAULT for a null pointer, or if a function of the table is missing; EINVAL if `size` is not that of this
// header's struct, or the name is not UTF-8; EMFILE if all descriptors are in use.
int sosplice_socket(const struct sosplice *layer,
                    const struct sosplice_protocol *protocol,
                    void *context,
                    size_t rcv_hiwat,
                    size_t snd_hiwat,
                    struct sosplice_end **end,
                    int *fd);

// Stores a number in `id` that no other socket of this process has or had.
//
// Returns 0; EFAULT for a null pointer; EBADF.
int sosplice_id(const struct sosplice *layer, int fd, uint64_t *id);

// Closes a descriptor, and with it the socket: its splices end, and the protocol's `detach` is called in this
// thread.
//
// Returns 0; EFAULT for a null pointer; EBADF.
int sosplice_close(const struct sosplice *layer, int fd);

// Ends a connection at once, and notifies the peer (a reset). The descriptor stays open.
//
// Returns 0; EFAULT for a null pointer; EBADF.
int sosplice_abort(const struct sosplice *layer, int fd);

// Ends one or both directions of a connection; `how` is SHUT_RD, SHUT_WR or SHUT_RDWR of `<sys/socket.h>`. The peer
// still gets the bytes that were sent before.
//
// Returns 0; EFAULT for a null pointer; EBADF; EINVAL for another `how`.
int sosplice_shutdown(const struct sosplice *layer,
                      int fd,
                      int how);

// Reads up to `length` bytes, without waiting, and stores their number in `count`: 0 at the end of the stream, and if
// the call fails.
//
// Returns 0; EFAULT for a null pointer (`data` may be null if `length` is 0); EBADF; EAGAIN if there are no bytes; once,
// the error that has ended the connection.
int sosplice_recv(const struct sosplice *layer,
                  int fd,
                  void *data,
                  size_t length,
                  size_t *count);

// Sends as many of `length` bytes as fit into the send buffer, without waiting, and stores their number in `count`: 0 if
// the call fails.
//
// Returns 0; EFAULT for a null pointer; EBADF; EAGAIN if none fits, or the connection is not established yet;
// EPIPE; the error that has ended the connection; EINVAL for a length above half of the address space.
int sosplice_send(const struct sosplice *layer,
                  int fd,
                  const void *data,
                  size_t length,
                  size_t *count);

// `setsockopt`. The option `SOSPLICE_SO_SPLICE` of level `SOSPLICE_SOL_SOCKET` splices the source `fd` to the sink
// that the value names, or ends its splice; its bytes are those of FreeBSD or OpenBSD (`struct sosplice_splice`, in
// OpenBSD also an `int`, or nothing to end it). Bytes that are queued
// already are moved in this call.
//
// Returns 0, or the error of that system: EBADF, EINVAL, ENOTCONN, EBUSY, EPROTO, EPROTONOSUPPORT, EOPNOTSUPP,
// ENOBUFS, ENOPROTOOPT; EAGAIN if no thread could be started. EFAULT for a null `layer`, or a null `value` with a
// `length` that is not 0.
int sosplice_setsockopt(const struct sosplice *layer,
                        int fd,
                        int level,
                        int name,
                        const void *value,
                        size_t length);

// `getsockopt`: `SOSPLICE_SO_SPLICE` has the number of bytes that the latest splice of the source `fd` has moved,
// an `int64_t`; `SOSPLICE_SO_ERROR` reads and clears the socket's error, an `int`, whose number is that of the
// flavor's system. `length` is the size of the memory at `value`, then the number of bytes stored there: as many as
// fit.
//
// Returns 0; EFAULT for a null pointer; EBADF; ENOPROTOOPT.
int sosplice_getsockopt(const struct sosplice *layer,
                        int fd,
                        int level,
                        int name,
                        void *value,
                        size_t *length);

// How the latest splice of the socket `fd` in this role (`SOSPLICE_SOURCE`, `SOSPLICE_SINK`) has ended.
//
// Returns 0; EFAULT for a null pointer; EBADF; EINVAL for another role; EAGAIN while it lasts, and before the first
// one.
int sosplice_ended(const struct sosplice *layer,
                   int fd,
                   int role,
                   struct sosplice_ended_splice *result);

// For a layer without worker threads: runs one pass of a splice, or fires one timer. Call it until it returns 0, after
// each batch of other work, before the loop sleeps. Any thread may call it; which one moves the bytes then.
//
// Passes become due by calls of `sosplice_end_append_rcv` and its like, and of the descriptors' functions. If other
// threads than the loop's make such calls, they must wake the loop themselves.
//
// Returns 1 if there was something to do, 0 if not, and -1 for a null pointer or a layer with worker threads.
int sosplice_run(const struct sosplice *layer);

// For a layer without worker threads: milliseconds, rounded up, until `sosplice_run` has a timer to fire; -1 if there
// is none (the timeout of `poll`).
int sosplice_timeout(const struct sosplice *layer);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* SOSPLICE_H */
