// What a bundle says of itself: docs/bundle.md, section 2. Keys that a player does not use are not looked at.

import Foundation

/// A bundle, a request or a result that is refused, in one line.
public struct Refusal: Error, CustomStringConvertible {
    public let description: String

    public init(_ description: String) {
        self.description = description
    }
}

/// The part of manifest.json that a player uses, with its values checked.
public struct Manifest: Decodable, Sendable {
    public struct Model: Decodable, Sendable {
        public let numClasses, inputSize, inChannels: Int
        let embedDim, numHeads: Int
        let depths: [Int]

        enum CodingKeys: String, CodingKey {
            case numClasses = "num_classes", inputSize = "input_size", inChannels = "in_channels"
            case embedDim = "embed_dim", numHeads = "num_heads", depths
        }
    }

    public enum Space: String, Decodable, Sendable {
        case image, latent
    }

    public struct Sample: Decodable, Sendable {
        public let space: Space
        public let shape: [Int]  // C, H, W
        public let clip, latentScale: Double

        enum CodingKeys: String, CodingKey {
            case space, shape, clip, latentScale = "latent_scale"
        }
    }

    public struct Precision: Decodable, Sendable {
        public let compute, storage: String?
    }

    public struct Graph: Decodable, Sendable {
        public let file: String
        public let function: String?
    }

    public struct Defaults: Decodable, Sendable {
        public let sampler: Sampler
        public let steps: Int
        public let guidance: Double
    }

    public struct Schedule: Decodable, Sendable {
        public let alphasCumprod: [Double]

        enum CodingKeys: String, CodingKey {
            case alphasCumprod = "alphas_cumprod"
        }
    }

    /// A finished table of a common run; `rows(...)` computes the same.
    public struct Table: Decodable, Sendable {
        public let sampler: Sampler
        public let steps: Int
        public let rows: [Row]
    }

    struct File: Decodable, Sendable {
        let size: Int
        let sha256: String
    }

    public let name, license, target: String
    public let model: Model
    public let classNames: [String]
    public let sample: Sample
    public let precision: Precision
    public let graphs: [String: Graph]?
    public let batch: Int?
    public let defaults: Defaults
    public let schedule: Schedule
    public let tables: [Table]?
    let files: [String: File]

    enum CodingKeys: String, CodingKey {
        case name, license, target, model, sample, precision, graphs, batch, defaults, schedule, tables, files
        case classNames = "class_names"
    }

    static let bytes = 64 << 20
    static let version = 1

    /// Read manifest.json, in the order of checks of section 2.
    public init(reading raw: Data) throws {
        guard raw.count <= Manifest.bytes else {
            throw Refusal("manifest.json has \(raw.count) bytes, more than 64 MiB; the bundle is refused")
        }
        let head = try decode(Head.self, from: raw)
        guard head.format == "lamamba-bundle" else {
            throw Refusal("its format is \(head.format), not lamamba-bundle; this is no bundle")
        }
        guard (1...Manifest.version).contains(head.version) else {
            let cure = head.version > Manifest.version ? "update this player" : "export it again"
            throw Refusal("its version is \(head.version), and this player reads version \(Manifest.version); \(cure)")
        }
        guard try decode(Seal.self, from: raw).digest == Manifest.digest(of: raw) else {
            throw Refusal("manifest.json is damaged: its digest differs; copy or export the bundle again")
        }
        self = try decode(Manifest.self, from: raw)
        try check()
    }

    private struct Head: Decodable {
        let format: String
        let version: Int
    }

    private struct Seal: Decodable {
        let digest: String
    }

    /// SHA-256 of what stands before the last `"digest"`, in hexadecimal digits; nil where there is none.
    static func digest(of raw: Data) -> String? {
        guard let key = raw.range(of: Data("\"digest\"".utf8), options: .backwards) else { return nil }
        var hash = SHA256()
        hash.update(data: raw[raw.startIndex..<key.lowerBound])
        return hexadecimal(hash.finalize())
    }

    private func check() throws {
        for text in [name, license, target] + classNames
        where text.unicodeScalars.contains(where: { $0.properties.generalCategory == .control }) {
            throw Refusal("the text \(text.debugDescription) holds control characters; the bundle is refused")
        }
        try require(
            (1...Int(Int32.max)).contains(model.numClasses), "model.num_classes \(model.numClasses) is impossible")
        let expected = [model.inChannels, model.inputSize, model.inputSize]
        try require(sample.shape == expected, "sample.shape is \(sample.shape), but its model takes \(expected)")
        try require(elements(of: sample.shape) != nil, "sample.shape \(sample.shape) is impossible")
        try require(sample.space == .latent || sample.shape[0] == 3, "an image has 3 channels, got \(sample.shape[0])")
        for (key, value) in [("clip", sample.clip), ("latent_scale", sample.latentScale)] {
            try require(value > 0 && value <= largest, "sample.\(key) must be a positive number, got \(value)")
        }
        try require(
            classNames.isEmpty || classNames.count == model.numClasses,
            "it has \(classNames.count) class_names for \(model.numClasses) classes")
        let alphas = schedule.alphasCumprod
        try require(
            !alphas.isEmpty && alphas.allSatisfy { $0 > 0 && $0 < 1 } && zip(alphas, alphas.dropFirst()).allSatisfy(>),
            "schedule.alphas_cumprod must be falling numbers between 0 and 1")
        try require(
            (1...alphas.count).contains(defaults.steps),
            "defaults.steps must be 1 to \(alphas.count), got \(defaults.steps)")
        try require(
            defaults.guidance >= 0 && defaults.guidance <= largest,
            "defaults.guidance must be a number, 0 or more, got \(defaults.guidance)")
        try require(batch ?? 1 >= 1, "batch must be at least 1, got \(batch ?? 1)")
        for (path, file) in files {
            try require(isPlain(path), "it names the file \(path.debugDescription), which is no plain relative path")
            let digits = file.sha256.utf8.allSatisfy { (48...57).contains($0) || (97...102).contains($0) }
            try require(
                file.size >= 0 && file.sha256.utf8.count == 64 && digits, "size or sha256 of \(path) is impossible")
        }
    }
}

private let largest = Double(Float.greatestFiniteMagnitude)

private func require(_ condition: Bool, _ message: @autoclosure () -> String) throws {
    if !condition { throw Refusal(message() + "; the bundle is refused") }
}

/// C H W of a shape, or nil where noise could not count them in 32 bits.
func elements(of shape: [Int]) -> Int? {
    var count = 1
    for side in shape {
        let (product, overflow) = count.multipliedReportingOverflow(by: side)
        guard side >= 1, !overflow, product <= 1 << 34 else { return nil }
        count = product
    }
    return count
}

/// Whether a path is relative and has ordinary parts only. Bytes, not characters: a combining mark hides no separator.
func isPlain(_ path: String) -> Bool {
    let parts = path.utf8.split(separator: UInt8(ascii: "/"), omittingEmptySubsequences: false)
    return parts.allSatisfy { !$0.isEmpty && !$0.elementsEqual(".".utf8) && !$0.elementsEqual("..".utf8) }
        && !path.utf8.contains(UInt8(ascii: "\\")) && !path.utf8.contains(UInt8(ascii: ":"))
        && !path.unicodeScalars.contains { $0.properties.generalCategory == .control }
}

func hexadecimal(_ bytes: some Sequence<UInt8>) -> String {
    bytes.map { String(format: "%02x", $0) }.joined()
}

/// Decode JSON, or refuse with one line that names the key.
private func decode<T: Decodable>(_ type: T.Type, from raw: Data) throws -> T {
    do {
        return try JSONDecoder().decode(type, from: raw)
    } catch let DecodingError.keyNotFound(key, context) {
        throw Refusal("manifest.json lacks \(dotted(context.codingPath + [key])); the bundle is refused")
    } catch let DecodingError.typeMismatch(_, context), let DecodingError.valueNotFound(_, context) {
        throw Refusal("\(dotted(context.codingPath)) in manifest.json is of another type; the bundle is refused")
    } catch let DecodingError.dataCorrupted(context) where !context.codingPath.isEmpty {
        throw Refusal("\(dotted(context.codingPath)) in manifest.json is impossible; the bundle is refused")
    } catch {
        throw Refusal("manifest.json is no JSON object; copy or export the bundle again")
    }
}

private func dotted(_ path: [CodingKey]) -> String {
    path.map(\.stringValue).joined(separator: ".")
}
