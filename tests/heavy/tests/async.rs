//! Our sockets as streams of tokio and of `futures-io`.

#![allow(
    clippy::unwrap_used,
    reason = "a test says by panicking what it did not expect"
)]

use crossbeam_channel::Sender;
use futures_lite::future::block_on;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use sosplice::link::memory;
use sosplice::splice::{self, Cause, Options};
use sosplice::{ConditionalListener, Socket, Stack, TcpListener, TcpSocket, TcpStream, local};
use std::convert::Infallible;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread;

fn connection() -> (TcpStream, TcpStream) {
    let (a, b) = memory::pair(memory::Config::default());
    let server = Stack::builder(a)
        .address("10.0.0.1/24".parse().unwrap())
        .build()
        .unwrap();
    let client = Stack::builder(b)
        .address("10.0.0.2/24".parse().unwrap())
        .build()
        .unwrap();
    let listener = TcpListener::bind(&server, "10.0.0.1:80").unwrap();
    let near = TcpStream::connect(&client, "10.0.0.1:80").unwrap();
    (near, listener.accept().unwrap().0)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let shouted = body.to_ascii_uppercase();
    Ok(Response::new(Full::new(shouted.into())))
}

/// hyper's client and server, each over one of our connections, with a join between them.
#[test]
fn http_through_a_join() {
    let ((user, front), (back, service)) = (connection(), connection());
    let options = Options::default().forward_eof(true);
    let join = splice::join(front, back, options).unwrap();
    let serving = thread::Builder::new().spawn(move || {
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(service), service_fn(answer));
        runtime().block_on(connection).unwrap();
    });
    runtime().block_on(async {
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(user));
        let (mut sender, connection) = handshake.await.unwrap();
        let exchange = async move {
            for size in [0, 1, 100_000, 3_000_000] {
                let body = Full::new(Bytes::from(vec![b'a'; size]));
                let request = Request::post("/shout")
                    .header("host", "here")
                    .body(body)
                    .unwrap();
                let response = sender.send_request(request).await.unwrap();
                let body = response.into_body().collect().await.unwrap().to_bytes();
                assert!(body.len() == size && body.iter().all(|byte| *byte == b'A'));
            }
        };
        let (connection, ()) = tokio::join!(connection, exchange);
        connection.unwrap();
    });
    serving.unwrap().join().unwrap();
    let ends = block_on(join.ended());
    let causes = (ends.a_to_b.cause, ends.b_to_a.cause);
    assert_eq!(causes, (Cause::Eof, Cause::Eof));
}

#[test]
fn futures_io_over_a_pair_with_small_buffers() {
    use futures_lite::{AsyncReadExt, AsyncWriteExt};
    let (mut a, mut b) = local::pair_with_hiwat(100, 100);
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    let sent = bytes.clone();
    let writer = thread::Builder::new().spawn(move || {
        block_on(async {
            a.write_all(&sent).await.unwrap();
            AsyncWriteExt::close(&mut a).await.unwrap();
        });
    });
    let mut all = Vec::new();
    block_on(b.read_to_end(&mut all)).unwrap();
    assert!(all == bytes);
    writer.unwrap().join().unwrap();
}

/// Counts wakes, and reports them.
struct Count(AtomicUsize, Sender<()>);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
        self.1.send(()).ok();
    }
}

#[test]
fn a_task_is_woken_once_for_each_time_it_waits_and_at_the_end_of_a_splice() {
    let (sender, woken) = crossbeam_channel::bounded(16);
    let count = Arc::new(Count(AtomicUsize::new(0), sender));
    let waker = Waker::from(count.clone());
    let cx = &mut Context::from_waker(&waker);
    let (a, b) = local::pair();
    let mut out = [0; 10];
    assert!(b.poll_recv(cx, &mut out).is_pending());
    assert!(
        b.poll_recv(cx, &mut out).is_pending(),
        "the same waker twice"
    );
    a.send(b"x").unwrap();
    a.send(b"y").unwrap();
    woken.recv().unwrap();
    assert_eq!(count.0.load(Ordering::SeqCst), 1);
    assert!(matches!(b.poll_recv(cx, &mut out), Poll::Ready(Ok(2))));

    let (c, d) = local::pair();
    let splice = b.splice_to(&c, Options::default()).unwrap();
    assert!(b.poll_recv(cx, &mut out).is_pending());
    a.send(b"through").unwrap();
    assert_eq!(d.recv_chain(7).unwrap().to_vec(), b"through");
    assert_eq!(
        count.0.load(Ordering::SeqCst),
        1,
        "a spliced source is quiet"
    );
    splice.unsplice().unwrap();
    woken.recv().unwrap();
    assert!(b.poll_recv(cx, &mut out).is_pending());
}

/// A waker may drop the last handle of the very socket that wakes it.
#[test]
fn a_waker_may_close_the_socket() {
    struct Close(std::sync::Mutex<Option<Socket>>);
    impl Wake for Close {
        fn wake(self: Arc<Self>) {
            drop(self.0.lock().unwrap().take());
        }
    }
    let (a, b) = local::pair();
    let waker = Waker::from(Arc::new(Close(std::sync::Mutex::new(Some(b.clone())))));
    let cx = &mut Context::from_waker(&waker);
    assert!(b.poll_recv(cx, &mut [0]).is_pending());
    drop(b);
    a.send(b"wake").unwrap();
    drop(waker);
    while a.send(b"more").is_ok() {
        thread::yield_now();
    }
}

#[test]
fn connecting_is_awaited() {
    let (near, _far) = connection();
    let connected = |stream: &TcpStream| {
        let stream = stream.clone();
        block_on(futures_lite::future::poll_fn(move |cx| {
            stream.poll_connected(cx)
        }))
    };
    connected(&near).unwrap();

    let (a, b) = memory::pair(memory::Config::default());
    let nobody = Stack::builder(a)
        .address("10.0.0.1/24".parse().unwrap())
        .build()
        .unwrap();
    let stack = Stack::builder(b)
        .address("10.0.0.2/24".parse().unwrap())
        .build()
        .unwrap();
    let refused = TcpSocket::new(&stack)
        .start("10.0.0.1:9".parse().unwrap())
        .unwrap();
    let error = connected(&refused).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    drop(nobody);
}

fn stacks() -> (Stack, Stack) {
    let (a, b) = memory::pair(memory::Config::default());
    let server = Stack::builder(a).address("10.0.0.1/24".parse().unwrap());
    let client = Stack::builder(b).address("10.0.0.2/24".parse().unwrap());
    (server.build().unwrap(), client.build().unwrap())
}

/// A waker that reports its calls.
fn bell() -> (Waker, crossbeam_channel::Receiver<()>) {
    let (sender, rung) = crossbeam_channel::bounded(16);
    let count = Arc::new(Count(AtomicUsize::new(0), sender));
    (Waker::from(count), rung)
}

#[test]
fn a_waiting_task_accepts_a_connection() {
    let (server, client) = stacks();
    let listener = TcpListener::bind(&server, "10.0.0.1:80").unwrap();
    let (waker, rung) = bell();
    let mut cx = Context::from_waker(&waker);
    for _ in 0..3 {
        assert!(listener.poll_accept(&mut cx).is_pending());
        let near = TcpStream::connect(&client, "10.0.0.1:80").unwrap();
        rung.recv().unwrap();
        let Poll::Ready(accepted) = listener.poll_accept(&mut cx) else {
            panic!("a connection is there");
        };
        assert_eq!(accepted.unwrap().1, near.local_addr());
    }
}

#[test]
fn a_close_and_a_stack_that_is_down_wake_waiting_accepts() {
    let (link, _far) = memory::pair(memory::Config::default());
    let builder = Stack::builder(link).address("10.0.0.1/24".parse().unwrap());
    let (stack, driver) = builder.build_with_driver().unwrap();
    let closes = TcpListener::bind(&stack, "10.0.0.1:80").unwrap();
    let stays = TcpListener::bind(&stack, "10.0.0.1:81").unwrap();
    let decides = ConditionalListener::bind(&stack, "10.0.0.1:82".parse().unwrap()).unwrap();
    let (waker, rung) = bell();
    let mut cx = Context::from_waker(&waker);
    assert!(closes.poll_accept(&mut cx).is_pending());
    closes.close();
    rung.recv().unwrap();
    let accepted = closes.poll_accept(&mut cx).map_err(|error| error.kind());
    assert!(matches!(
        accepted,
        Poll::Ready(Err(ErrorKind::InvalidInput))
    ));
    assert!(stays.poll_accept(&mut cx).is_pending());
    assert!(decides.poll_pending(&mut cx).is_pending());
    drop(driver);
    for _ in 0..2 {
        rung.recv().unwrap();
    }
    let accepted = stays.poll_accept(&mut cx).map_err(|error| error.kind());
    assert!(matches!(accepted, Poll::Ready(Err(ErrorKind::NetworkDown))));
    let pending = decides.poll_pending(&mut cx).map_err(|error| error.kind());
    assert!(matches!(pending, Poll::Ready(Err(ErrorKind::NetworkDown))));
}

/// One task dials, another one decides and a third one accepts, all in one thread.
#[test]
fn a_proxy_of_tasks_decides_and_dials() {
    let ((front, client), (back, server)) = (stacks(), stacks());
    let listener = ConditionalListener::bind(&front, "10.0.0.1:80".parse().unwrap()).unwrap();
    let service = TcpListener::bind(&server, "10.0.0.2:80").unwrap();
    runtime().block_on(async {
        let user = async {
            let socket = TcpSocket::new(&client);
            let mut stream = socket.connect_async("10.0.0.1:80".parse().unwrap()).await?;
            tokio::io::AsyncWriteExt::write_all(&mut stream, b"hello").await?;
            tokio::io::AsyncWriteExt::shutdown(&mut stream).await
        };
        let proxy = async {
            let pending = listener.pending_async().await?;
            let socket = TcpSocket::new(&back);
            let outside = socket.connect_async("10.0.0.2:80".parse().unwrap()).await?;
            let options = Options::default().forward_eof(true);
            let join = splice::join(pending.accept()?, outside, options).unwrap();
            std::io::Result::Ok(join.ended().await)
        };
        let server = async {
            let (mut stream, _) = service.accept_async().await?;
            let mut peeked = [0; 5];
            let count = std::future::poll_fn(|cx| stream.poll_peek(cx, &mut peeked)).await?;
            let mut all = Vec::new();
            tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut all).await?;
            assert_eq!(&all, b"hello");
            assert!(all.starts_with(&peeked[..count]));
            std::io::Result::Ok(())
        };
        let (user, proxy, server) = tokio::join!(user, proxy, server);
        user.unwrap();
        server.unwrap();
        assert_eq!(proxy.unwrap().a_to_b.bytes, 5);
    });
}

#[test]
fn a_dropped_connecting_future_leaves_no_state() {
    let (link, _far) = memory::pair(memory::Config::default());
    let builder = Stack::builder(link).address("10.0.0.1/24".parse().unwrap());
    let (stack, _driver) = builder.build_with_driver().unwrap();
    let socket = TcpSocket::new(&stack);
    let mut connecting = Box::pin(socket.connect_async("10.0.0.2:80".parse().unwrap()));
    let mut cx = Context::from_waker(Waker::noop());
    assert!(connecting.as_mut().poll(&mut cx).is_pending());
    assert_eq!(stack.stats().connections, 1);
    drop(connecting);
    assert_eq!(stack.stats().connections, 0);
}
