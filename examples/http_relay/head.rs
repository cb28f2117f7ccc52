//! Heads of requests and responses: parsed by `httparse`, and rewritten for the next hop. Pure.

use httparse::{EMPTY_HEADER, Header, Status};

/// Maximum number of fields of a head.
const FIELDS: usize = 100;
/// Fields that concern one connection only (RFC 9110, 7.6.1), and `Host`, which is written first.
const NOT_FORWARDED: [&str; 6] = [
    "connection",
    "keep-alive",
    "proxy-connection",
    "te",
    "upgrade",
    "host",
];
/// Fields that stay even if `Connection` names them: they determine where the body ends.
const FRAMING: [&str; 2] = ["content-length", "transfer-encoding"];

/// The head is malformed, or ambiguous about the end of its body. The status is the client's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bad(pub(crate) u16);

/// A value and its length at the front of the bytes, or `None`: more bytes are needed.
pub(crate) type Parsed<T> = Result<Option<(usize, T)>, Bad>;

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// The head for the backend.
    pub(crate) head: Vec<u8>,
    /// In lower case, without a port.
    pub(crate) host: String,
    /// Bytes of the body.
    pub(crate) body: u64,
    pub(crate) is_head: bool,
    /// HTTP/1.1, and no `Connection: close`.
    pub(crate) keep_alive: bool,
}

/// Where the body of a response ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    Length(u64),
    Chunked,
    /// At the end of the stream.
    Rest,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Response {
    /// The head for the client, without the last empty line.
    pub(crate) head: Vec<u8>,
    pub(crate) status: u16,
    pub(crate) body: Body,
    pub(crate) keep_alive: bool,
}

/// The head of a request.
pub(crate) fn request(bytes: &[u8]) -> Parsed<Request> {
    let mut fields = [EMPTY_HEADER; FIELDS];
    let mut request = httparse::Request::new(&mut fields);
    let len = match request.parse(bytes) {
        Ok(Status::Complete(len)) => len,
        Ok(Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(Bad(431)),
        Err(_) => return Err(Bad(400)),
    };
    let (Some(method), Some(target), Some(version)) =
        (request.method, request.path, request.version)
    else {
        return Err(Bad(400));
    };
    if method == "CONNECT" {
        return Err(Bad(501));
    }
    let fields = Fields(request.headers);
    // The host of a target like http://host/path takes precedence over the field (RFC 9112, 3.2.2).
    let host = match target.strip_prefix("http://") {
        Some(rest) => rest.split(['/', '?']).next(),
        None if target.starts_with('/') || target == "*" => fields.one("host")?,
        None => return Err(Bad(400)),
    };
    let host = match host {
        Some(host) => host,
        None if version == 0 => "",
        None => return Err(Bad(400)),
    };
    let body = match (fields.content_length()?, fields.has("transfer-encoding")) {
        (Some(_), true) => return Err(Bad(400)),
        (None, true) => return Err(Bad(411)),
        (length, false) => length.unwrap_or(0),
    };
    let keep_alive = version == 1 && !fields.connection("close");
    let mut head = format!("{method} {target} HTTP/1.{version}\r\nHost: {host}\r\n").into_bytes();
    fields.forward(&mut head);
    if !keep_alive {
        head.extend_from_slice(b"Connection: close\r\n");
    }
    head.extend_from_slice(b"\r\n");
    let request = Request {
        head,
        host: name_of(host),
        body,
        is_head: method == "HEAD",
        keep_alive,
    };
    Ok(Some((len, request)))
}

/// The head of a response, to a HEAD request or another one.
pub(crate) fn response(bytes: &[u8], to_head: bool) -> Parsed<Response> {
    let mut fields = [EMPTY_HEADER; FIELDS];
    let mut response = httparse::Response::new(&mut fields);
    let Status::Complete(len) = response.parse(bytes).map_err(|_| Bad(502))? else {
        return Ok(None);
    };
    let (Some(status), Some(version)) = (response.code, response.version) else {
        return Err(Bad(502));
    };
    let fields = Fields(response.headers);
    let length = fields.content_length().map_err(|_| Bad(502))?;
    let coding = fields.one("transfer-encoding").map_err(|_| Bad(502))?;
    let body = match (coding, length) {
        _ if to_head || matches!(status, 100..=199 | 204 | 304) => Body::Length(0),
        (Some(coding), None) if coding.eq_ignore_ascii_case("chunked") => Body::Chunked,
        // Other codings, and a length beside one: it is not clear where the body ends.
        (Some(_), _) => return Err(Bad(502)),
        (None, Some(length)) => Body::Length(length),
        (None, None) => Body::Rest,
    };
    let reason = response.reason.unwrap_or("");
    let mut head = format!("HTTP/1.1 {status} {reason}\r\n").into_bytes();
    fields.forward(&mut head);
    let keep_alive = version == 1 && !fields.connection("close");
    Ok(Some((
        len,
        Response {
            head,
            status,
            body,
            keep_alive,
        },
    )))
}

/// The size of a chunk (0: the last one), with the bytes of its line.
pub(crate) fn chunk_size(bytes: &[u8]) -> Parsed<u64> {
    if bytes.first().is_some_and(|byte| !byte.is_ascii_hexdigit()) {
        return Err(Bad(502));
    }
    match httparse::parse_chunk_size(bytes) {
        Ok(Status::Complete((line, size))) => Ok(Some((line, size))),
        Ok(Status::Partial) => Ok(None),
        Err(_) => Err(Bad(502)),
    }
}

/// The last chunk with the following fields, up to the empty line. `line` bytes are its own line.
pub(crate) fn last_chunk(bytes: &[u8], line: usize) -> Parsed<()> {
    let fields = bytes.get(line..).unwrap_or(&[]);
    match httparse::parse_headers(fields, &mut [EMPTY_HEADER; FIELDS]) {
        Ok(Status::Complete((len, _))) => Ok(Some((line + len, ()))),
        Ok(Status::Partial) => Ok(None),
        Err(_) => Err(Bad(502)),
    }
}

/// A host's name as routes have it: `Example.COM:8080` is `example.com`.
pub(crate) fn name_of(host: &str) -> String {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    name.to_ascii_lowercase()
}

/// The fields of a head.
struct Fields<'a>(&'a [Header<'a>]);

impl<'a> Fields<'a> {
    fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let of_name = self
            .0
            .iter()
            .filter(move |field| field.name.eq_ignore_ascii_case(name));
        of_name.map(|field| field.value)
    }

    fn has(&self, name: &str) -> bool {
        self.all(name).next().is_some()
    }

    /// The value of a field that is allowed once.
    fn one(&self, name: &str) -> Result<Option<&'a str>, Bad> {
        let mut all = self.all(name);
        match (all.next(), all.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => str::from_utf8(value).map(Some).map_err(|_| Bad(400)),
            _ => Err(Bad(400)),
        }
    }

    fn content_length(&self) -> Result<Option<u64>, Bad> {
        let Some(value) = self.one("content-length")? else {
            return Ok(None);
        };
        // parse() takes a sign too.
        let digits = value.bytes().all(|byte| byte.is_ascii_digit());
        let length = value.parse().ok().filter(|_| digits);
        length.map(Some).ok_or(Bad(400))
    }

    /// Whether `Connection` lists this.
    fn connection(&self, option: &str) -> bool {
        let values = self
            .all("connection")
            .filter_map(|value| str::from_utf8(value).ok());
        let mut options = values.flat_map(|value| value.split(','));
        options.any(|named| named.trim().eq_ignore_ascii_case(option))
    }

    /// Writes the end-to-end fields, and adds `Via`.
    fn forward(&self, head: &mut Vec<u8>) {
        for Header { name, value } in self.0 {
            let is = |other: &&str| name.eq_ignore_ascii_case(other);
            let kept = FRAMING.iter().any(is) || !self.connection(name);
            if kept && !NOT_FORWARDED.iter().any(is) {
                head.extend_from_slice(name.as_bytes());
                head.extend_from_slice(b": ");
                head.extend_from_slice(value);
                head.extend_from_slice(b"\r\n");
            }
        }
        head.extend_from_slice(b"Via: 1.1 http_relay\r\n");
    }
}
