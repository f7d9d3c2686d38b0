// A function in Rust without a single crate: Lambda's Runtime API over a TCP stream. Counts the records of the event.
// rustc -O bootstrap.rs && command = ["./bootstrap"]. With cargo, use the official crate lambda_runtime instead.
use std::env;
use std::error::Error;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

struct Answer {
    request_id: String,
    body: String,
}

fn call(stream: &mut BufReader<TcpStream>, method: &str, path: &str, body: &str) -> Result<Answer, Box<dyn Error>> {
    let length = body.len();
    write!(
        stream.get_mut(),
        "{method} /2018-06-01/runtime/{path} HTTP/1.1\r\nHost: runtime\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let (mut request_id, mut length, mut line) = (String::new(), 0, String::new());
    while stream.read_line(&mut line)? > 2 {
        if let Some((name, value)) = line.split_once(':') {
            match name.to_ascii_lowercase().as_str() {
                "lambda-runtime-aws-request-id" => request_id = value.trim().to_string(),
                "content-length" => length = value.trim().parse()?,
                _ => {}
            }
        }
        line.clear();
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(Answer { request_id, body: String::from_utf8(body)? })
}

fn handler(event: &str, request_id: &str) -> String {
    let count = event.matches("\"messageId\"").count();
    println!("{request_id} has {count} records");
    format!("{{\"records\":{count}}}")
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut stream = BufReader::new(TcpStream::connect(env::var("AWS_LAMBDA_RUNTIME_API")?)?);
    loop {
        let next = call(&mut stream, "GET", "invocation/next", "")?;
        let result = handler(&next.body, &next.request_id);
        call(&mut stream, "POST", &format!("invocation/{}/response", next.request_id), &result)?;
    }
}
