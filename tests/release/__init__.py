"""What a release consists of and how it is tried: the wheel, its locked requirements, its bill of materials, licences, advisories."""
