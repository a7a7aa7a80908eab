import Foundation
import LaMamba

do {
    try await play(try Options(Array(CommandLine.arguments.dropFirst())))
} catch {
    FileHandle.standardError.write(Data("lamamba-player: \((error as? Refusal)?.description ?? "\(error)")\n".utf8))
    exit(2)
}
