// docs/vectors.json, the file that the Python tests read, found from this file's own place in the repository.

import Foundation

@testable import LaMamba

let repository = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("../../../..")

struct Vectors: Decodable {
    struct Philox: Decodable { let key, counter, words: [UInt32] }
    struct Uniform: Decodable { let word: UInt32, uniform: Double }
    struct BoxMuller: Decodable { let words: [UInt32], values: [Float] }
    struct Normal: Decodable { let seed: String, image, draw, stream: UInt32, shape: [Int], values: [Float] }
    struct Spacing: Decodable { let steps: Int, timesteps: [Int] }
    struct Table: Decodable {
        let sampler: Sampler, steps: Int, clip: Double, interval: [Double]?, timesteps: [Int]?, rows: [Row]
    }
    struct Digest: Decodable { let text, digest: String, accepted: Bool }
    struct Pixel: Decodable { let value: Float, byte: UInt8 }
    struct Call: Decodable { let graph: String, t: Float, images: [UInt32], draw: UInt32?, x_next, denoised: [[Float]] }
    struct Loop: Decodable {
        let null_label: Int32, shape: [Int], labels: [Int32], seed: String, first: UInt32, batch: Int
        let sampler: Sampler, steps: Int, clip, strength: Double, interval: [Double]?, trace: [Call]
    }

    let philox: [Philox], uniforms: [Uniform], box_muller: [BoxMuller], normals: [Normal], alphas_cumprod: [Double]
    let spacing: [Spacing], tables: [Table], digests: [Digest], pixels: [Pixel], loops: [Loop]

    static func load() throws -> Vectors {
        let file = repository.appendingPathComponent("docs/vectors.json")
        return try JSONDecoder().decode(Vectors.self, from: Data(contentsOf: file))
    }
}

extension Vectors.Loop {
    func run(_ alphas: [Double]) -> Run {
        let table = rows(
            alphas, sampler: sampler, timesteps: spacedTimesteps(total: alphas.count, steps: steps), clip: clip,
            strength: strength, interval: interval.map { $0[0]...$0[1] })
        return Run(
            table: table, shape: shape, labels: labels, seed: UInt64(seed)!, strength: Float(strength), batch: batch,
            first: first)
    }
}

/// The toy network of docs/bundle.md, section 13, in the place of the graphs; it notes its calls.
final class ToyStep: Step {
    let batch: Int?
    let nullLabel: Int32
    var calls: [(row: Row, noise: [Float], labels: [Int32], xNext: [Float], denoised: [Float])] = []
    var spoil: (inout [Float]) -> Void = { _ in }

    init(nullLabel: Int32, batch: Int? = nil) {
        self.nullLabel = nullLabel
        self.batch = batch
    }

    func callAsFunction(
        _ row: Row, x: [Float], history: [Float], noise: [Float], labels: [Int32], strength: Float
    ) throws -> (xNext: [Float], denoised: [Float]) {
        let c = row.coef.map { Double($0) }
        let w = (0.25 + 1) / 2
        let scale = exp((w * c[6] + (1 - w) * c[5]) / 2)
        var (xNext, denoised) = (x, x)
        for i in x.indices {
            let (value, label) = (Double(x[i]), labels[i / (x.count / labels.count)])
            var eps = toyEps(value, label, row.t)
            if row.guided {
                let null = toyEps(value, nullLabel, row.t)
                eps = null + Double(strength) * (eps - null)
            }
            let x0 = min(max(c[0] * value - c[1] * eps, -c[7]), c[7])
            denoised[i] = Float(x0)
            xNext[i] = Float(c[2] * x0 + c[3] * value + c[4] * Double(history[i]) + scale * Double(noise[i]))
        }
        spoil(&xNext)
        calls.append((row, noise, labels, xNext, denoised))
        return (xNext, denoised)
    }
}

private func toyEps(_ x: Double, _ label: Int32, _ t: Float) -> Double {
    (0.5 + 0.1 * Double(label)) * x + 0.0001 * Double(t)
}
