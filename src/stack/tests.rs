//! A stack whose driver is called by the test, over a link whose other end the test holds.

use super::*;
use crate::link::memory::{self, MemoryLink};

fn stack(frames: usize) -> (Stack, Driver, MemoryLink) {
    let config = memory::Config {
        frames,
        ..memory::Config::default()
    };
    let (link, far) = memory::pair(config);
    let builder = Stack::builder(link).address("10.0.0.1/24".parse().unwrap());
    let (stack, driver) = builder.manual().unwrap();
    (stack, driver, far)
}

fn peer() -> SocketAddr {
    "10.0.0.2:80".parse().unwrap()
}

#[test]
fn a_connection_has_one_timer() {
    let (stack, mut driver, _far) = stack(1);
    let connecting = [(); 3].map(|()| TcpStream::start(&stack, peer()).unwrap());
    for _ in 0..100 {
        driver.run_once().unwrap();
    }
    assert_eq!(stack.shared().agenda.lock().timers(), connecting.len());
}
