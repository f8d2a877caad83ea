// Complete a prompt without crates: rustc complete.rs && ./complete
// A program of yours has a crate for HTTP and one for JSON.
use std::env;
use std::io::{Read, Write};
use std::net::TcpStream;

fn main() -> std::io::Result<()> {
    let base = env::var("AFTERWORD_URL").unwrap_or("http://127.0.0.1:8000/v1".to_string());
    let model = env::var("AFTERWORD_MODEL").unwrap_or("smollm2-135m-instruct".to_string());
    let key = env::var("AFTERWORD_KEY").unwrap_or("unused".to_string());
    let address = base.trim_start_matches("http://");
    let (host, path) = address.split_once('/').unwrap_or((address, ""));
    let body = format!(
        r#"{{"model": "{model}", "prompt": "Say this is a test", "max_tokens": 7, "temperature": 0}}"#
    );
    let mut stream = TcpStream::connect(host)?;
    write!(
        stream,
        "POST /{path}/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n\
         Authorization: Bearer {key}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, content) = answer.split_once("\r\n\r\n").expect("an answer has a head");
    if !head.starts_with("HTTP/1.1 200") {
        eprintln!("{content}");
        std::process::exit(1);
    }
    println!("{content}");
    Ok(())
}
