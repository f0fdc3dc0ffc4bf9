//! What a file that is no ONNX model is instead: what downloads, archives and other frameworks leave in its place, by how their bytes
//! begin.

/// How a kind of file begins: the place, the bytes there, and what to say of it.
const KINDS: [(usize, &[u8], &str); 9] = [
    (0, b"\x1f\x8b", "it is packed by gzip: unpack it first"),
    (
        0,
        b"PK\x03\x04",
        "it is a zip archive, as PyTorch's .pt and Keras's .keras are: export the model to ONNX, or unpack it",
    ),
    (0, b"\x89PNG", "it is a PNG picture: the model comes first, then the output, pictures by --images or --calib"),
    (
        0,
        b"\xff\xd8\xff",
        "it is a JPEG picture: the model comes first, then the output, pictures by --images or --calib",
    ),
    (0, b"\x93NUMPY", "it is a NumPy array: the model comes first, then the output, arrays by --images or --calib"),
    (0, b"\x89HDF", "it is an HDF5 file, as Keras's .h5 are: export the model to ONNX"),
    (0, b"version https://git-lfs", "it is a pointer of Git LFS to a file that was not fetched: run git lfs pull"),
    (4, b"TFL3", "it is a TensorFlow Lite model: convert it to ONNX"),
    (4, b"ORTM", "it is in ONNX Runtime's own format: give the .onnx file that it was made from"),
];

/// Parts of a decoder's path to what it met that are told from either end.
const TOLD: usize = 3;

/// What is wrong with bytes of which a decoder says this.
pub(super) fn told(bytes: &[u8], decoder: &str) -> String {
    let begins = |(at, magic, _): &&(usize, &[u8], &str)| bytes.get(*at..).is_some_and(|rest| rest.starts_with(magic));
    if let Some((_, _, told)) = KINDS.iter().find(begins) {
        return (*told).to_owned();
    }
    match bytes.trim_ascii_start() {
        [b'<', b'!' | b'?' | b'h' | b'H', ..] => {
            return "it is HTML or XML, as of a page that came instead of the model".into();
        }
        [b'{' | b'[', ..] if std::str::from_utf8(bytes).is_ok() => {
            return "it is JSON: export the model to ONNX".into();
        }
        [0x80, 2..=5, ..] => return "it is a Python pickle, as PyTorch's old .pt are: export the model to ONNX".into(),
        _ => {}
    }
    let path: Vec<&str> = decoder.split(": ").collect();
    if path.len() <= 2 * TOLD {
        return decoder.to_owned();
    }
    format!("{}: …: {}", path[..TOLD].join(": "), path[path.len() - TOLD..].join(": "))
}

#[cfg(test)]
mod tests {
    use super::told;

    #[test]
    fn files_of_other_kinds_are_named_and_long_paths_shortened() {
        assert!(told(b"\x1f\x8b\x08", "wrong").contains("gzip"));
        assert!(told(b"\x1c\0\0\0TFL3", "wrong").contains("TensorFlow Lite"));
        assert!(told(b"\n <!DOCTYPE html>", "wrong").contains("HTML"));
        assert!(told(b"{\"graph\": 1}", "wrong").contains("JSON"));
        assert_eq!(told(b"\x08\x07", "failed: wrong"), "failed: wrong");
        assert_eq!(told(b"", "a: b: c: d: e: f: g: h"), "a: b: c: …: f: g: h");
    }
}
