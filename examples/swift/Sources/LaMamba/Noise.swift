// Noise as a function of (seed, image, draw, stream) and an element's position: docs/bundle.md, section 6.

import Foundation

/// Philox 4x32-10 (Salmon et al., SC'11): four words from a counter of four and a key of two.
func philox(key: (UInt32, UInt32), counter: (UInt32, UInt32, UInt32, UInt32)) -> (UInt32, UInt32, UInt32, UInt32) {
    var (c0, c1, c2, c3) = counter
    var (k0, k1) = key
    for _ in 0..<10 {
        let p = UInt32(0xD251_1F53).multipliedFullWidth(by: c0)
        let q = UInt32(0xCD9E_8D57).multipliedFullWidth(by: c2)
        (c0, c1, c2, c3) = (q.high ^ c1 ^ k0, q.low, p.high ^ c3 ^ k1, p.low)
        k0 &+= 0x9E37_79B9
        k1 &+= 0xBB67_AE85
    }
    return (c0, c1, c2, c3)
}

/// A word as a number in (0, 1], exact.
func uniform(_ word: UInt32) -> Double {
    (Double(word) + 1) * 0x1p-32
}

/// Two normal numbers from two words, in float64 and rounded to float32.
func boxMuller(_ w0: UInt32, _ w1: UInt32) -> (Float, Float) {
    let radius = (-2 * log(uniform(w0))).squareRoot()
    let angle = 6.283185307179586 * uniform(w1)
    return (Float(radius * cos(angle)), Float(radius * sin(angle)))
}

/// Standard normal numbers of one image in the order C, H, W; draw 0 is the initial x, draw i + 1 belongs to row i.
public func noise(count: Int, seed: UInt64, image: UInt32, draw: UInt32, stream: UInt32 = 0) -> [Float] {
    let key = (UInt32(truncatingIfNeeded: seed), UInt32(seed >> 32))
    var values: [Float] = []
    values.reserveCapacity(count + 3)
    for group in 0..<UInt32((count + 3) / 4) {
        let words = philox(key: key, counter: (group, draw, image, stream))
        let (a, b) = boxMuller(words.0, words.1)
        let (c, d) = boxMuller(words.2, words.3)
        values += [a, b, c, d]
    }
    return Array(values.prefix(count))
}
