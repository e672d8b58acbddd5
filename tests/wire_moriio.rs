//! What workers of vLLM's MoRIIOConnector say: bytes recorded from vLLM 0.33's own files, both ways, and everything else.

use kvlink::error::Status;
use kvlink::wire::moriio::{Blob, Handshake, LayerMemory, Notify, Role};

const META: &str = "86a9656e67696e655f6964ad31302e302e302e313a36333031ae6167656e745f6d65746164617461c406964544455343b36b765f63616368\
65735f626173655f6164647292cf00007f0000000000cf00007f0000100000aa6e756d5f626c6f636b73cc80a9626c6f636b5f6c656ece00010000b16174746e\
5f6261636b656e645f6e616d65aa464c4153485f4154544e";
const LAYERS: &str = "82b86d6f64656c2e6c61796572732e302e73656c665f6174746e91c4079f4d4445534330b26d6f64656c2e6c61796572732e312e6b6461\
92c4059f434f4e56c4049f53534d";

fn hex(text: &str) -> Vec<u8> {
    text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

fn handshake() -> Handshake {
    let layer = |name: &str, regions: &[&[u8]]| LayerMemory {
        layer: name.into(),
        regions: regions.iter().map(|r| Blob(r.to_vec())).collect(),
    };
    Handshake {
        engine_id: "10.0.0.1:6301".into(),
        agent_metadata: Blob(b"\x96EDESC".to_vec()),
        kv_caches_base_addr: vec![139637976727552, 139637977776128],
        num_blocks: 128,
        block_len: 65536,
        attn_backend_name: "FLASH_ATTN".into(),
        kv_head_layouts: [].into(),
        mamba_state_layouts: [].into(),
        attention_block_sizes: [].into(),
        layers: vec![
            layer("model.layers.0.self_attn", &[b"\x9fMDESC0"]),
            layer("model.layers.1.kda", &[b"\x9fCONV", b"\x9fSSM"]),
        ],
    }
}

#[test]
fn a_handshake_has_the_bytes_of_vllm() {
    assert_eq!(handshake().encode(), [hex(META), hex(LAYERS)]);
    assert_eq!(Handshake::decode(&hex(META), &hex(LAYERS)), Ok(handshake()));
    let mut full = handshake();
    full.kv_head_layouts.insert("l0".into(), vec![8, 16, 256, 65536, 256, 2048, 0, 32768]);
    full.mamba_state_layouts.insert("l1".into(), vec![1, 2, u64::MAX]);
    full.attention_block_sizes.insert("l0".into(), 16);
    let [meta, layers] = full.encode();
    assert_eq!(Handshake::decode(&meta, &layers), Ok(full.clone()));
    assert_eq!(Handshake::from_json(full.to_json().as_bytes()), Ok(full));
    let text = r#"{"engine_id":"10.0.0.1:6301","agent_metadata":"lkVERVND","kv_caches_base_addr":[139637976727552,139637977776128],"num_blocks":128,"block_len":65536,"attn_backend_name":"FLASH_ATTN","layers":[{"layer":"model.layers.0.self_attn","regions":["n01ERVNDMA"]},{"layer":"model.layers.1.kda","regions":["n0NPTlY","n1NTTQ"]}]}"#;
    assert_eq!(handshake().to_json(), text);
}

#[test]
fn notifications_have_the_bytes_of_vllm() {
    let tx = |id: &str| id.to_string();
    let blocks = |req: &str, id: &str, lists: &[&[u32]]| Notify::RemoteBlocks {
        req_id: req.into(),
        transfer_id: id.into(),
        block_notify_list: lists.iter().map(|l| l.to_vec()).collect(),
        decode_rank: 0,
    };
    let done = |id: &str, num_writers| Notify::WriteDone { transfer_id: tx(id), num_writers };
    let release = |id: &str, consumer_tp_size| Notify::Release { transfer_id: tx(id), consumer_tp_size };
    let (p, d) = (Role::Prefill, Role::Decode);
    for (bytes, to, message) in [
        (
            &b"\x85\xa6req_id\xa2r1\xabtransfer_id\xa4tx-1\xb1block_notify_list\x92\x04\x05\xabdecode_rank\x00\xa4type\xadremote_blocks"[..],
            p,
            blocks("r1", "tx-1", &[&[4, 5]]),
        ),
        (b"\x82\xa4type\xaawrite_done\xabtransfer_id\xa4tx-1", d, done("tx-1", 1)),
        (b"\x83\xa4type\xaawrite_done\xabtransfer_id\xa4tx-1\xabnum_writers\x02", d, done("tx-1", 2)),
        (b"\x82\xa4type\xacwrite_failed\xabtransfer_id\xa4tx-5", d, Notify::WriteFailed { transfer_id: tx("tx-5") }),
        (b"\x83\xa4type\xa7release\xabtransfer_id\xa4tx-1\xb0consumer_tp_size\x04", p, release("tx-1", 4)),
    ] {
        assert_eq!(message.encode(), bytes, "{message:?}");
        assert_eq!(Notify::decode(bytes, to), Ok(message.clone()));
        assert_eq!(Notify::from_json(message.to_json().as_bytes()), Ok(message.clone()));
        let other = if to == p { d } else { p };
        let e = Notify::decode(bytes, other).unwrap_err();
        assert!(e.status() == Status::Protocol && e.message().contains(message.name()), "{e}");
    }
    // Forms that only others write.
    let old = b"\x83\xa6req_id\xa1r\xabtransfer_id\xa4tx-8\xb1block_notify_list\x92\x91\x01\x91\x02";
    assert_eq!(Notify::decode(old, p), Ok(blocks("r", "tx-8", &[&[1], &[2]])));
    assert_eq!(Notify::decode(b"tx-3", p), Ok(release("tx-3", 1)));
    assert_eq!(Notify::decode(b"tx-6", d), Ok(done("tx-6", 1)));
    let later =
        b"\x83\xa4type\xaawrite_done\xabtransfer_id\xa4tx-1\xa5extra\x82\xa1a\x93\x01\xc0\xcb\0\0\0\0\0\0\0\0\x01\x02";
    assert_eq!(Notify::decode(later, d), Ok(done("tx-1", 1)), "keys of later versions are passed over");
}

#[test]
fn hostile_notifications_are_refused_by_name() {
    let many = [
        &b"\x83\xa6req_id\xa1r\xabtransfer_id\xa1t\xb1block_notify_list\xdd\0\x0f\xff\xff"[..],
        &[0x91, 1].repeat(300),
    ]
    .concat();
    for (bytes, named) in [
        (
            &b"\x84\xa4type\xadremote_blocks\xa6req_id\xa1r\xabtransfer_id\xa4tx-9\xb1block_notify_list\x90"[..],
            "no block",
        ),
        (b"\x83\xa6req_id\xa1r\xabtransfer_id\xa1t\xb1block_notify_list\x92\x90\x90", "no block"),
        (b"\x83\xa6req_id\xa1r\xabtransfer_id\xa1t\xb1block_notify_list\x92\x01\x91\x02", "blocks and groups"),
        (b"\x83\xa6req_id\xa1r\xabtransfer_id\xa1t\xb1block_notify_list\x91\xff", "FixNeg(-1)"),
        (b"\x83\xa6req_id\xa1r\xabtransfer_id\xa1t\xb1block_notify_list\x91\xd0\x80", "negative"),
        (b"\x83\xa6req_id\xa1r\xabtransfer_id\xa1t\xb1block_notify_list\x91\xcf\0\0\0\x01\0\0\0\0", "below 2^32"),
        (b"\x83\xa6req_id\xa1r\xabtransfer_id\xa1t\xb1block_notify_list\xdd\xff\xff\xff\xff", "cut off"),
        (b"\x83\xa6req_id\xa1r\xabtransfer_id\xa1t\xb1block_notify_list\xa1x", "must be an array"),
        (&many, "at most 256"),
        (b"\x81\xa4type\xa5hello", "transfer_id is missing"),
        (b"\x82\xa4type\xa5hello\xabtransfer_id\xa1t", "\"hello\""),
        (b"\x81\xabtransfer_id\xa1t", "type is missing"),
        (b"\x82\xa4type\xa7release\xabtransfer_id\xa0", "transfer_id of 0 bytes"),
        (b"\x82\xa4type\xa7release\xabtransfer_id\xa1\0", "NUL"),
        (b"\x82\xa4type\xa7release\xabtransfer_id\x07", "transfer_id is FixPos(7)"),
        (b"\x82\xa4type\xa7release\xabtransfer_id\xa2\xff\xff", "UTF-8"),
        (b"\x83\xa4type\xa7release\xabtransfer_id\xa1t\xb0consumer_tp_size\x00", "consumer_tp_size is 0"),
        (b"\x83\xa4type\xa7release\xabtransfer_id\xa1t\xb0consumer_tp_size\xcd\xff\xff", "consumer_tp_size is 65535"),
        (b"\x83\xa4type\xa7release\xa4type\xa7release\xabtransfer_id\xa1t", "\"type\" twice"),
        (b"\x82\xa4type\xa7release\xabtransfer_id\xa1tx", "1 bytes follow"),
        (b"\x83\xa4type\xa7release\xabtransfer_id\xa1t\xa1x\xc1", "Reserved"),
        (b"\x81\x01\x02", "a key of message"),
        (b"\xdf\xff\xff\xff\xff", "cut off"),
        (b"", "transfer_id of 0 bytes"),
        (b"\xff\xfe", "neither a map nor a text"),
        (b"\x07", "character"),
        (b"a\nb", "character"),
        (&[b'x'; 256], "transfer_id of 256 bytes"),
    ] {
        let e = Notify::decode(bytes, Role::Prefill).unwrap_err();
        assert!(e.status() == Status::Protocol && e.message().contains(named), "{named}: {e}");
    }
    let deep = [&b"\x83\xa4type\xa7release\xabtransfer_id\xa1t\xa1x"[..], &[0x91; 100_000]].concat();
    assert!(Notify::decode(&deep, Role::Prefill).unwrap_err().message().contains("values within values"));
    for (text, named) in [
        (r#"{"type":"hello","transfer_id":"t"}"#, "hello"),
        (r#"{"type":"release"}"#, "transfer_id"),
        (r#"{"type":"release","transfer_id":"t","num_writers":1}"#, "num_writers"),
        (r#"{"type":"release","transfer_id":""}"#, "transfer_id of 0 bytes"),
        (r#"{"type":"remote_blocks","req_id":"r","transfer_id":"t","block_notify_list":[]}"#, "no block"),
        (r#"{"type":"remote_blocks","req_id":"r","transfer_id":"t","block_notify_list":[[-1]]}"#, "-1"),
        ("[]", "type"),
    ] {
        let e = Notify::from_json(text.as_bytes()).unwrap_err();
        assert!(e.status() == Status::InvalidArgument && e.message().contains(named), "{text}: {e}");
    }
}

#[test]
fn hostile_handshakes_are_refused_by_name() {
    let (meta, layers) = (hex(META), hex(LAYERS));
    for end in 0..meta.len() {
        assert!(Handshake::decode(&meta[..end], &layers).is_err(), "{end} bytes of the first answer");
    }
    for end in 0..layers.len() {
        assert!(Handshake::decode(&meta, &layers[..end]).is_err(), "{end} bytes of the second answer");
    }
    let replaced = |from: &str, to: &str| hex(&META.replace(from, to));
    for (bytes, named) in [
        (hex(&META.replacen("86a9", "85a9", 1)), "bytes follow metadata"),
        (replaced("cc80a9", "ccc0a9"), ""),
        (replaced("aa6e756d5f626c6f636b73", "aa6e756d5f626c6f636b74"), "num_blocks is missing"),
        (replaced("c406964544455343", "a406964544455343"), "must be bytes"),
        (b"\x80".to_vec(), "engine_id is missing"),
        (b"\xc0".to_vec(), "must be a map"),
    ] {
        match Handshake::decode(&bytes, &layers) {
            Ok(h) => assert!(named.is_empty() && h.num_blocks == 0xc0),
            Err(e) => assert!(!named.is_empty() && e.message().contains(named), "{named}: {e}"),
        }
    }
    for (bytes, named) in [
        (&b"\x80"[..], "layers has 0"),
        (b"\x81\xa1l\x90", "layer 0 has 0"),
        (b"\x81\xa1l\x91\xc4\0", "a region of layer 0 has 0"),
        (b"\x81\xa1l\x91\xa1x", "must be bytes"),
        (b"\x82\xa1l\x91\xc4\x01x\xa1l\x91\xc4\x01x", "\"l\" twice"),
        (b"\x81\xa0\x91\xc4\x01x", "the name of a layer"),
    ] {
        let e = Handshake::decode(&meta, bytes).unwrap_err();
        assert!(e.status() == Status::Protocol && e.message().contains(named), "{named}: {e}");
    }
    let json = handshake().to_json();
    for (text, named) in [
        (json.replace("lkVERVND", "*"), "base64url"),
        (json.replace("lkVERVND", ""), "agent_metadata has 0"),
        (json.replace("\"num_blocks\":128,", ""), "num_blocks"),
        (json.replace("\"num_blocks\":128", "\"num_blocks\":-1"), "-1"),
        (json.replace("engine_id", "engine"), "engine"),
    ] {
        let e = Handshake::from_json(text.as_bytes()).unwrap_err();
        assert!(e.status() == Status::InvalidArgument && e.message().contains(named), "{named}: {e}");
    }
}
