// The loop, what is refused in it, and pixels: docs/bundle.md, sections 4, 7, 8 and 9.
// B images of a batch, C H W the shape of one; arrays are flat and row-major, W fastest.

import Foundation

/// The graphs of a bundle.
public protocol Step {
    /// The number of images that the graphs take, nil for any.
    var batch: Int? { get }

    /// One call: x, history, noise, and both results (B, C, H, W); `row.guided` says which graph; labels (B).
    func callAsFunction(
        _ row: Row, x: [Float], history: [Float], noise: [Float], labels: [Int32], strength: Float
    ) throws -> (xNext: [Float], denoised: [Float])
}

/// What is to be sampled; what is left out is the bundle's default.
public struct Request {
    public var labels: [Int]
    public var seed: UInt64
    public var sampler: Sampler?
    public var steps: Int?
    public var strength: Double?
    public var interval: ClosedRange<Double>?
    public var batch = 8  // for graphs that take any number
    public var first: UInt32 = 0  // index of the first image

    public init(labels: [Int], seed: UInt64) {
        self.labels = labels
        self.seed = seed
    }
}

/// Where a run is: `step` of `steps` is done for the images at `images` of the request's labels.
public struct Progress {
    public let step, steps: Int
    public let images: Range<Int>
    public let preview: [Float]  // their denoised, (B, C, H, W)
}

extension Manifest {
    /// Run the loop. `onStep` is called after each step; where it returns false, finished batches are returned.
    public func sample(
        _ request: Request, with step: some Step, onStep: (Progress) -> Bool = { _ in true }
    ) throws -> [[Float]] {
        try run(of: request).sample(with: step, onStep: onStep)
    }

    /// What a request asks for, after looking at whether it can be met.
    func run(of request: Request) throws -> Run {
        let alphas = schedule.alphasCumprod
        let (steps, strength) = (request.steps ?? defaults.steps, request.strength ?? defaults.guidance)
        guard (1...alphas.count).contains(steps) else {
            throw Refusal("steps must be 1 to \(alphas.count), got \(steps)")
        }
        guard strength >= 0, Float(strength).isFinite else {
            throw Refusal("the strength of guidance must be a number, 0 or more, got \(strength)")
        }
        for label in request.labels where !(0..<model.numClasses).contains(label) {
            throw Refusal("there is no class \(label); labels are 0 to \(model.numClasses - 1)")
        }
        guard request.batch >= 1 else { throw Refusal("batch must be at least 1, got \(request.batch)") }
        guard Int(request.first) + request.labels.count <= 1 << 32 else {
            throw Refusal("image indices must fit 32 bits; start lower than \(request.first)")
        }
        let table = rows(
            alphas, sampler: request.sampler ?? defaults.sampler,
            timesteps: spacedTimesteps(total: alphas.count, steps: steps), clip: sample.clip, strength: strength,
            interval: request.interval)
        return Run(
            table: table, shape: sample.shape, labels: request.labels.map { Int32($0) }, seed: request.seed,
            strength: Float(strength), batch: request.batch, first: request.first)
    }
}

/// A run with everything decided.
struct Run {
    let table: [Row]
    let shape: [Int]  // C, H, W
    let labels: [Int32]
    let seed: UInt64
    let strength: Float
    let batch: Int
    let first: UInt32

    private var size: Int { shape.reduce(1, *) }

    /// The images of the finished batches, each C H W values.
    func sample(with step: some Step, onStep: (Progress) -> Bool) throws -> [[Float]] {
        let batch = step.batch ?? batch
        var results: [[Float]] = []
        for start in stride(from: 0, to: labels.count, by: batch) {
            let images = start..<min(start + batch, labels.count)
            guard let x = try finish(images, with: step, onStep: onStep) else { return results }
            for (i, image) in zip(images, stride(from: 0, to: x.count, by: size)) {
                let values = Array(x[image..<image + size])
                guard deviation(values) >= 1e-4 else {
                    throw Refusal("image \(Int(first) + i) is flat; the model or its weights are broken")
                }
                results.append(values)
            }
        }
        return results
    }

    /// x of one batch after the last step, or nil where it was cancelled. A step of fixed size gets its batch filled
    /// up with more images of the last label, and those are dropped from what it gives.
    private func finish(_ images: Range<Int>, with step: some Step, onStep: (Progress) -> Bool) throws -> [Float]? {
        let computed = images.lowerBound..<images.lowerBound + (step.batch ?? images.count)
        let kept = images.count * size
        let classes = computed.map { labels[min($0, images.upperBound - 1)] }
        var x = draw(0, computed)
        var history = [Float](repeating: 0, count: x.count)
        let zeros = history
        for (i, row) in table.enumerated() {
            let drawn = row.noisy ? draw(UInt32(i + 1), computed) : zeros
            (x, history) = try step(row, x: x, history: history, noise: drawn, labels: classes, strength: strength)
            guard x.count == zeros.count, history.count == zeros.count else {
                throw Refusal("a graph gave \(x.count) values in place of \(zeros.count); export the bundle again")
            }
            guard x.prefix(kept).allSatisfy(\.isFinite), history.prefix(kept).allSatisfy(\.isFinite) else {
                throw Refusal("step \(i + 1) of \(table.count) gave values that are not finite")
            }
            let preview = Array(history.prefix(kept))
            if !onStep(Progress(step: i + 1, steps: table.count, images: images, preview: preview)) { return nil }
        }
        return Array(x.prefix(kept))
    }

    private func draw(_ draw: UInt32, _ images: Range<Int>) -> [Float] {
        images.flatMap { noise(count: size, seed: seed, image: first &+ UInt32(truncatingIfNeeded: $0), draw: draw) }
    }
}

/// The standard deviation of all values.
private func deviation(_ values: [Float]) -> Double {
    let mean = values.reduce(0) { $0 + Double($1) } / Double(values.count)
    return (values.reduce(0) { $0 + (Double($1) - mean) * (Double($1) - mean) } / Double(values.count)).squareRoot()
}

/// A value of an image as a byte.
public func pixel(_ value: Float) -> UInt8 {
    UInt8(((min(max(Double(value), -1), 1) + 1) * 127.5 + 0.5).rounded(.down))
}

/// An image (C, H, W) as bytes (H, W, C).
public func pixels(_ image: some Collection<Float>, shape: [Int]) -> [UInt8] {
    let plane = shape[1] * shape[2]
    let values = Array(image)
    return (0..<plane).flatMap { place in (0..<shape[0]).map { pixel(values[$0 * plane + place]) } }
}
