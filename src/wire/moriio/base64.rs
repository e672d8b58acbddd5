//! base64url without padding (RFC 4648, section 5): one text for any bytes, and one only.

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

pub(super) fn encode(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len().div_ceil(3).saturating_mul(4));
    for chunk in bytes.chunks(3) {
        let word = (0..3).fold(0u32, |w, i| w << 8 | u32::from(chunk.get(i).copied().unwrap_or(0)));
        for i in 0..=chunk.len() as u32 {
            let digit = word >> (18 - 6 * i) & 63;
            out.push(char::from(DIGITS[digit as usize]));
        }
    }
    out
}

/// `None`: another character, a length that cannot be, or bits that no byte has.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for chunk in text.as_bytes().chunks(4) {
        let mut word = 0u32;
        for i in 0..4 {
            let value = match chunk.get(i) {
                Some(c) => DIGITS.iter().position(|d| d == c)? as u32,
                None => 0,
            };
            word = word << 6 | value;
        }
        let [_, bytes @ ..] = word.to_be_bytes();
        let whole = chunk.len().checked_sub(1).filter(|n| *n > 0)?;
        if bytes.get(whole..)?.iter().any(|b| *b != 0) {
            return None;
        }
        out.extend_from_slice(bytes.get(..whole)?);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_of_the_standard() {
        for (bytes, text) in
            [("", ""), ("f", "Zg"), ("fo", "Zm8"), ("foo", "Zm9v"), ("foob", "Zm9vYg"), ("foobar", "Zm9vYmFy")]
        {
            assert_eq!(encode(bytes.as_bytes()), text);
            assert_eq!(decode(text).as_deref(), Some(bytes.as_bytes()));
        }
        assert_eq!(encode(&[0xfb, 0xff]), "-_8");
    }

    #[test]
    fn one_text_only() {
        for text in ["Z", "Zg==", "Zh", "Zm9", "Zm9vY", "Zg\n", "+/8", "Zm 9"] {
            assert_eq!(decode(text), None, "{text:?}");
        }
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encode(&all)), Some(all));
    }
}
