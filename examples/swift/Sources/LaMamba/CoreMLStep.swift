// The graphs of a `coreml` bundle in Core ML: docs/bundle.md, sections 3 and 4.

#if canImport(CoreML)
import CoreML
import Foundation

/// Compiles a bundle's packages when made, and loads each of the two functions at its first call.
///
/// Calls block, so sample away from the main thread. Compiled packages lie in a temporary folder until this goes.
public final class CoreMLStep: Step {
    public let batch: Int?
    private let shape: [Int]  // C, H, W
    private let computeUnits: MLComputeUnits
    private let functions: [Bool: (file: URL, function: String)]
    private var compiled: [URL: URL] = [:]
    private var models: [Bool: MLModel] = [:]

    public init(_ bundle: ModelBundle, computeUnits: MLComputeUnits = .all) async throws {
        functions = [false: try bundle.graph(guided: false), true: try bundle.graph(guided: true)]
        batch = bundle.manifest.batch ?? 1
        shape = bundle.manifest.sample.shape
        self.computeUnits = computeUnits
        for file in Set(functions.values.map(\.file)) {
            compiled[file] = try await MLModel.compileModel(at: file)
        }
    }

    deinit {
        for folder in compiled.values {
            try? FileManager.default.removeItem(at: folder)
        }
    }

    public func callAsFunction(
        _ row: Row, x: [Float], history: [Float], noise: [Float], labels: [Int32], strength: Float
    ) throws -> (xNext: [Float], denoised: [Float]) {
        let images = [labels.count] + shape
        var inputs = [
            "x": MLFeatureValue(shapedArray: MLShapedArray(scalars: x, shape: images)),
            "history": MLFeatureValue(shapedArray: MLShapedArray(scalars: history, shape: images)),
            "noise": MLFeatureValue(shapedArray: MLShapedArray(scalars: noise, shape: images)),
            "t": MLFeatureValue(shapedArray: MLShapedArray(scalars: [row.t], shape: [1])),
            "label": MLFeatureValue(shapedArray: MLShapedArray(scalars: labels, shape: [labels.count])),
            "coef": MLFeatureValue(shapedArray: MLShapedArray(scalars: row.coef, shape: [row.coef.count])),
        ]
        if row.guided {
            let strengths = MLShapedArray(repeating: strength, shape: [labels.count])
            inputs["guidance"] = MLFeatureValue(shapedArray: strengths)
        }
        let model = try model(guided: row.guided)
        let provider = try MLDictionaryFeatureProvider(dictionary: inputs)
        return try autoreleasepool {
            let outputs = try model.prediction(from: provider)
            return (try values(of: "x_next", in: outputs), try values(of: "denoised", in: outputs))
        }
    }

    private func model(guided: Bool) throws -> MLModel {
        if let model = models[guided] { return model }
        guard let (file, function) = functions[guided], let place = compiled[file] else {
            throw Refusal("the package of the \(guided ? "guided" : "unguided") graph was not compiled")
        }
        let configuration = MLModelConfiguration()
        configuration.computeUnits = computeUnits
        if function != "main" {  // the only function of a package needs no name
            guard #available(macOS 15, iOS 18, *) else {
                throw Refusal("the bundle needs macOS 15 or iOS 18; export with --deployment-target iOS17")
            }
            configuration.functionName = function
        }
        let model = try MLModel(contentsOf: place, configuration: configuration)
        models[guided] = model
        return model
    }
}

/// An output in row-major order, whatever strides Core ML gave it.
private func values(of name: String, in outputs: MLFeatureProvider) throws -> [Float] {
    guard let array = outputs.featureValue(for: name)?.shapedArrayValue(of: Float.self) else {
        throw Refusal("the graph has no float32 output \(name); export the bundle again")
    }
    return array.scalars
}
#endif
