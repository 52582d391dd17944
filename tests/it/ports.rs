//! Ports for servers that can't be given any: they are told one, and take it a while later, or again after they were killed.

/// One that nobody has, below those that the kernel gives to whoever asks for any (from 32,768 on), which everybody else here does.
pub fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(10_000..32_000);
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
