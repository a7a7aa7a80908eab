import Foundation
import LaMamba

let usage = """
    usage: lamamba-player BUNDLE.lamamba [options]
      --class NAME       a class by name or number, may be repeated (all in turn)
      -n COUNT           how many pictures (one)
      --seed SEED        0 to 2^64 - 1 (0)
      --sampler NAME     ddpm, ddim or dpmpp-2m (the bundle's)
      --steps STEPS      steps of a run (the bundle's)
      --guidance NUMBER  strength of guidance, 1 for none (the bundle's)
      --out FOLDER       where pictures go (.)
      --preview FILE     a PNG written anew after each step, of the first picture at work
      --units UNITS      where Core ML may compute: all, cpu, cpu-gpu or cpu-ne (all)
    Ctrl-C stops after the step at work; finished pictures are kept.
    """

/// What the command line asks for.
struct Options {
    var bundle = ""
    var classes: [String] = []
    var count = 1
    var seed: UInt64 = 0
    var sampler: Sampler?
    var steps: Int?
    var guidance: Double?
    var out = "."
    var preview: String?
    var units = "all"

    init(_ arguments: [String]) throws {
        var rest = arguments[...]
        while let word = rest.popFirst() {
            if word == "--help" {
                print(usage)
                exit(0)
            }
            guard word.hasPrefix("-") else {
                guard bundle.isEmpty else { throw Refusal("one bundle at a time, got \(word) too; see --help") }
                bundle = word
                continue
            }
            guard let value = rest.popFirst() else { throw Refusal("\(word) needs a value; see --help") }
            switch word {
            case "--class": classes.append(value)
            case "-n": count = try read(value, word)
            case "--seed": seed = try read(value, word)
            case "--sampler":
                sampler = Sampler(rawValue: value)
                guard sampler != nil else { throw Refusal("there is no sampler \(value); see --help") }
            case "--steps": steps = try read(value, word) as Int
            case "--guidance": guidance = try read(value, word) as Double
            case "--out": out = value
            case "--preview": preview = value
            case "--units": units = value
            default: throw Refusal("there is no option \(word); see --help")
            }
        }
        guard !bundle.isEmpty else { throw Refusal("which bundle? see --help") }
        guard count >= 1 else { throw Refusal("-n must be at least 1, got \(count)") }
    }

    /// The request that the options make of a bundle.
    func request(_ manifest: Manifest) throws -> Request {
        let all = Array(0..<manifest.model.numClasses)
        let chosen = classes.isEmpty ? all : try classes.map { try label(of: $0, in: manifest) }
        var request = Request(labels: (0..<count).map { chosen[$0 % chosen.count] }, seed: seed)
        request.sampler = sampler
        request.steps = steps
        request.strength = guidance
        return request
    }
}

private func label(of name: String, in manifest: Manifest) throws -> Int {
    if let label = manifest.classNames.firstIndex(of: name) ?? Int(name) { return label }
    throw Refusal("there is no class \(name); there are \(manifest.classNames.joined(separator: ", "))")
}

private func read<T: LosslessStringConvertible>(_ value: String, _ option: String) throws -> T {
    guard let number = T(value) else { throw Refusal("\(option) needs a number, got \(value)") }
    return number
}
